"""The routes of people, and who a request comes from."""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field

from delivery.database import LARGEST
from delivery.people.accounts import NAME, Accounts, NameTaken, Person, Role, TooManyGuesses
from delivery.people.logins import Logins, Tokens
from ministream.base.units import Duration, Size

Name = Annotated[str, Field(pattern=NAME)]

_scheme = HTTPBearer(auto_error=False, description="Authorization: Bearer TOKEN")
Given = Annotated[HTTPAuthorizationCredentials | None, Depends(_scheme)]

ANYBODY = Person("anybody", Role.USER)


class Credentials(BaseModel):
    """A name and a password, which may be short where it was taken over from another system."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    password: str = Field(max_length=1024)


class Registration(Credentials):
    """A name and a password for a new account."""

    password: str = Field(min_length=10, max_length=1024)


class Refresh(BaseModel):
    """A refresh token, which is replaced."""

    token: str = Field(max_length=200)


class Rights(BaseModel):
    """What an operator grants: a role, a licence from now on, bytes a day."""

    model_config = ConfigDict(extra="forbid")

    role: Role | None = None
    licence: Duration | None = None
    quota: Size | None = Field(None, ge=0, le=LARGEST)


class Door:
    """Tells who a request comes from.

    Parameters
    ----------
    accounts, logins
        People and their logins.
    operator
        Returns whose token it is, of those that make their bearer an operator; None if nobody's.
    is_open
        Whether those who show no token are served, too.
    """

    def __init__(
        self, accounts: Accounts, logins: Logins, operator: Callable[[str], str | None], *, is_open: bool
    ) -> None:
        self._accounts, self._logins = accounts, logins
        self._operator, self._open = operator, is_open

    def person(self, given: Given) -> Person:
        """Return who a request comes from: a dependency of routes; 401 if that is nobody."""
        if given is None and self._open:
            return ANYBODY
        person = self._known(given.credentials) if given else None
        if person is None:
            detail = "this token is not known here, or no more" if given else "a bearer token is needed: log in"
            raise HTTPException(401, detail, headers={"WWW-Authenticate": "Bearer"})
        return person

    def operator(self, given: Given) -> Person:
        """Return the operator that a request comes from; 403 if it is none."""
        person = self.person(given)
        if not person.is_operator:
            raise HTTPException(403, "only operators may do that")
        return person

    def _known(self, token: str) -> Person | None:
        if name := self._logins.bearer(token):
            return self._accounts.get(name)
        name = self._operator(token)
        return Person(name, Role.OPERATOR) if name else None


class Terms(NamedTuple):
    """What a new account gets: a licence of so many seconds, and a quota of bytes a day."""

    licence: float
    quota: int


def add_routes(app: FastAPI, accounts: Accounts, logins: Logins, door: Door, terms: Terms | None) -> None:
    """Add registration (None: people can't register), login, logout, and what operators grant."""
    routes = APIRouter(tags=["people"])
    _add_registration(routes, accounts, terms)
    _add_login(routes, accounts, logins)
    _add_grants(routes, accounts, door)
    app.include_router(routes)


def _add_registration(routes: APIRouter, accounts: Accounts, terms: Terms | None) -> None:
    @routes.post("/register", status_code=201)
    def register(given: Registration) -> dict[str, str]:
        """Make an account."""
        if terms is None:
            raise HTTPException(403, "accounts are made by the operators of this service: ask them")
        try:
            accounts.register(given.name, given.password, licence=terms.licence, quota=terms.quota)
        except NameTaken as error:
            raise HTTPException(409, f"the name {given.name} is taken; choose another one") from error
        return {"name": given.name}


def _add_login(routes: APIRouter, accounts: Accounts, logins: Logins) -> None:
    @routes.post("/login")
    def login(given: Credentials) -> dict[str, Any]:
        """Exchange a password for an access and a refresh token."""
        try:
            right = accounts.is_password(given.name, given.password)
        except TooManyGuesses as error:
            detail = "the password of this name was wrong too often: wait a minute"
            raise HTTPException(429, detail, headers={"Retry-After": "60"}) from error
        if not right:
            raise HTTPException(401, "name or password is wrong", headers={"WWW-Authenticate": "Bearer"})
        return _told(logins.begin(given.name))

    @routes.post("/login/refresh")
    def refresh(given: Refresh) -> dict[str, Any]:
        """Exchange a refresh token for new tokens; it is worth nothing then."""
        tokens = logins.refresh(given.token)
        if tokens is None:
            raise HTTPException(401, "this login has ended: log in again", headers={"WWW-Authenticate": "Bearer"})
        return _told(tokens)

    @routes.post("/logout", status_code=204)
    def logout(given: Given) -> Response:
        """End a login."""
        if given:
            logins.end(given.credentials)
        return Response(status_code=204)


def _add_grants(routes: APIRouter, accounts: Accounts, door: Door) -> None:
    @routes.get("/me")
    def me(person: Annotated[Person, Depends(door.person)]) -> dict[str, Any]:
        """Tell who asks, and what they may."""
        return person._asdict()

    @routes.get("/people", dependencies=[Depends(door.operator)])
    def people() -> list[dict[str, Any]]:
        """List all accounts."""
        return [person._asdict() for person in accounts.all()]

    @routes.patch("/people/{name}", dependencies=[Depends(door.operator)])
    def grant(name: str, rights: Rights) -> dict[str, Any]:
        """Grant a role, a licence from now on, a quota; a licence of 0 seconds ends it."""
        values: dict[str, Any] = {"role": rights.role, "quota": rights.quota}
        if rights.licence is not None:
            values["licence_until"] = accounts.clock() + rights.licence
        given = {key: value for key, value in values.items() if value is not None}
        if given and not accounts.change(name, **given):
            raise HTTPException(404, f"nobody is called {name}")
        person = accounts.get(name)
        if person is None:
            raise HTTPException(404, f"nobody is called {name}")
        return person._asdict()


def _told(tokens: Tokens) -> dict[str, Any]:
    return {"access_token": tokens.access, "refresh_token": tokens.refresh, "token_type": "bearer",
            "expires_in": tokens.seconds}  # fmt: skip
