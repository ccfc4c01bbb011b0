"""Accounts: passwords, roles, licences and quotas.

Passwords are kept as argon2 hashes. A hash costs its memory and time on purpose, so few are made at once; and a name
whose password was wrong too often must wait, so that none is guessed.
"""

import threading
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Any, NamedTuple

from pwdlib import PasswordHash
from sqlalchemy import BigInteger, Column, Engine, Float, String, Table, insert, select, update
from sqlalchemy.exc import IntegrityError

from delivery.database import metadata, writing

HASHES = 2
"""Passwords that are hashed at a time, each in tens of megabytes."""

NAME = r"^[A-Za-z0-9][A-Za-z0-9._@-]{1,63}$"
"""Names that people may have."""

GUESSES, PAUSE = 5, 60.0
"""Wrong passwords of a name within so many seconds, after which all are refused."""

accounts = Table(
    "accounts",
    metadata,
    Column("name", String, primary_key=True),
    Column("password", String, nullable=False),
    Column("role", String, nullable=False),
    Column("licence_until", Float, nullable=False),
    Column("quota", BigInteger, nullable=False),
)


class Role(StrEnum):
    """What somebody may do: users have tickets of their own, operators run the service."""

    USER = "user"
    OPERATOR = "operator"


class Person(NamedTuple):
    """Who asks: `licence_until` in seconds since 1970, `quota` in bytes a day; None is without end."""

    name: str
    role: Role
    licence_until: float | None = None
    quota: int | None = None

    @property
    def is_operator(self) -> bool:
        """Whether this person runs the service."""
        return self.role == Role.OPERATOR


class NameTaken(Exception):  # noqa: N818 - says what it is
    """Somebody else has this name."""


class TooManyGuesses(Exception):  # noqa: N818 - says what it is
    """A name's password was wrong too often."""


class _Guesses:
    """When passwords of late were wrong, by name; for any number of threads."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._wrong: dict[str, list[float]] = {}

    def check(self, name: str) -> None:
        with self._lock:
            recent = [when for when in self._wrong.get(name, ()) if when > self._clock() - PAUSE]
        if len(recent) >= GUESSES:
            raise TooManyGuesses

    def note(self, name: str, *, right: bool) -> None:
        """Note how a guess went; names that were guessed long ago are forgotten: strangers make up any number."""
        with self._lock:
            if right:
                self._wrong.pop(name, None)
                return
            old = self._clock() - PAUSE
            self._wrong = {each: times for each, times in self._wrong.items() if times[-1] > old}
            self._wrong[name] = [*self._wrong.get(name, ())[-GUESSES:], self._clock()]


class Accounts:
    """All accounts; for any number of threads.

    Parameters
    ----------
    engine
        The database.
    clock
        Returns the seconds since 1970.
    """

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.time) -> None:
        self._engine, self.clock = engine, clock
        self._hasher, self._hashing = PasswordHash.recommended(), threading.BoundedSemaphore(HASHES)
        self._guesses = _Guesses(self.clock)
        self._nobody = ""

    def register(self, name: str, password: str, *, licence: float, quota: int) -> None:
        """Make an account for a user, with a licence of so many seconds.

        Raises
        ------
        NameTaken
            If there is one of that name.
        """
        self.take_over(name, self._hash(password), licence=licence, quota=quota)

    def take_over(self, name: str, password_hash: str, *, licence: float, quota: int) -> None:
        """Make an account for a user of another system, whose password has this argon2 hash; NameTaken as above."""
        values = {"role": Role.USER, "licence_until": self.clock() + licence, "quota": quota}
        try:
            with writing(self._engine) as connection:
                connection.execute(insert(accounts).values(name=name, password=password_hash, **values))
        except IntegrityError as error:
            raise NameTaken from error

    def is_password(self, name: str, password: str) -> bool:
        """Return whether this is the password of that name; takes as long if there is no such name.

        Raises
        ------
        TooManyGuesses
            If it was wrong too often lately.
        """
        self._guesses.check(name)
        with self._engine.connect() as connection:
            stored = connection.scalar(select(accounts.c.password).where(accounts.c.name == name))
        if stored is None and not self._nobody:
            self._nobody = self._hash("nobody's password")
        with self._hashing:
            self._guesses.check(name)  # again: others may have guessed while this one waited
            right = self._hasher.verify(password, stored or self._nobody) and stored is not None
            self._guesses.note(name, right=right)
        return right

    def get(self, name: str) -> Person | None:
        """Return whose account this is."""
        with self._engine.connect() as connection:
            row = connection.execute(select(accounts).where(accounts.c.name == name)).one_or_none()
        return _person(row) if row else None

    def all(self) -> list[Person]:
        """Return everybody, by name."""
        with self._engine.connect() as connection:
            return [_person(row) for row in connection.execute(select(accounts).order_by(accounts.c.name))]

    def change(self, name: str, **values: Any) -> bool:
        """Set a role, the end of a licence or a quota; returns whether there is such an account."""
        with writing(self._engine) as connection:
            return bool(connection.execute(update(accounts).where(accounts.c.name == name).values(**values)).rowcount)

    def _hash(self, password: str) -> str:
        with self._hashing:
            return self._hasher.hash(password)


def _person(row: Any) -> Person:
    return Person(row.name, Role(row.role), row.licence_until, row.quota)
