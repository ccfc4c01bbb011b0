"""Logins: short-lived access tokens, and a refresh token that is replaced each time it is used.

An access token is signed and names its login, which must still be there: a logout counts at once. The database keeps
the hash of a login's current refresh token alone. One that was replaced before and is used again has been copied;
whoever has the other copy, the login ends.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from typing import NamedTuple

import jwt
from sqlalchemy import Column, Engine, Float, String, Table, delete, insert, select, update

from delivery.database import metadata, writing
from delivery.people.secrets import secret_key

ACCESS = 600.0
"""Seconds for which an access token is good."""

_ALGORITHM, _AUDIENCE = "HS256", "delivery"

logins = Table(
    "logins",
    metadata,
    Column("id", String, primary_key=True),
    Column("name", String, nullable=False),
    Column("refresh", String(64), nullable=False),
    Column("expires", Float, nullable=False),
)


class Tokens(NamedTuple):
    """What somebody who logs in gets; `seconds` until the access token must be refreshed."""

    access: str
    refresh: str
    seconds: float


class Logins:
    """All logins; for any number of threads.

    Parameters
    ----------
    engine
        The database.
    lifetime
        Seconds without use that end a login.
    clock
        Returns the seconds since 1970.
    """

    def __init__(self, engine: Engine, lifetime: float, clock: Callable[[], float] = time.time) -> None:
        self._engine, self._lifetime, self._clock = engine, lifetime, clock
        self._key = secret_key(engine, "access tokens")

    def begin(self, name: str) -> Tokens:
        """Log somebody in, whose password was right."""
        login, refresh = secrets.token_urlsafe(16), secrets.token_urlsafe(32)
        now = self._clock()
        row = {"id": login, "name": name, "refresh": _hash(refresh), "expires": now + self._lifetime}
        with writing(self._engine) as connection:
            connection.execute(delete(logins).where(logins.c.expires <= now))
            connection.execute(insert(logins).values(**row))
        return self._tokens(name, login, refresh)

    def refresh(self, token: str) -> Tokens | None:
        """Replace a refresh token; None, and the login ends, if it was replaced before; None if it is unknown."""
        login, _, secret = token.partition(".")
        refresh, now = secrets.token_urlsafe(32), self._clock()
        with writing(self._engine) as connection:
            row = connection.execute(select(logins).where(logins.c.id == login, logins.c.expires > now)).one_or_none()
            if row is None:
                return None
            if not hmac.compare_digest(row.refresh, _hash(secret)):
                connection.execute(delete(logins).where(logins.c.id == login))
                return None
            values = {"refresh": _hash(refresh), "expires": now + self._lifetime}
            connection.execute(update(logins).where(logins.c.id == login).values(**values))
        return self._tokens(row.name, login, refresh)

    def end(self, access: str) -> None:
        """Log out: none of the login's tokens is good any more."""
        if claims := self._claims(access):
            with writing(self._engine) as connection:
                connection.execute(delete(logins).where(logins.c.id == claims["login"]))

    def bearer(self, access: str) -> str | None:
        """Return whose access token this is; None if it is foreign, too old, or its login has ended."""
        claims = self._claims(access)
        if claims is None:
            return None
        with self._engine.connect() as connection:
            chosen = logins.c.id == claims["login"], logins.c.expires > self._clock()
            return connection.scalar(select(logins.c.name).where(*chosen))

    def _tokens(self, name: str, login: str, refresh: str) -> Tokens:
        claims = {"sub": name, "login": login, "aud": _AUDIENCE, "exp": self._clock() + ACCESS}
        return Tokens(jwt.encode(claims, self._key, _ALGORITHM), f"{login}.{refresh}", ACCESS)

    def _claims(self, access: str) -> dict[str, str] | None:
        required = ["sub", "login", "aud", "exp"]
        try:
            claims: dict[str, str] = jwt.decode(
                access, self._key, [_ALGORITHM], audience=_AUDIENCE, options={"require": required, "verify_exp": False}
            )
        except jwt.InvalidTokenError:
            return None
        return claims if float(claims["exp"]) > self._clock() else None


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
