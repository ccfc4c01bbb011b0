"""`POST /auth/token/`: a login as OAuth 2 clients make it, by a form; JSON with the same fields does as well."""

from typing import Any

from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from delivery.people.accounts import Accounts, TooManyGuesses
from delivery.people.api import Name
from delivery.people.logins import Logins
from delivery.upload.intake import Refused
from delivery.upload.ledger import LOGIN_REFUSED, Ledger
from delivery.web.bodies import limit_body

LONGEST = 4096
"""Bytes of the request."""


class _Login(BaseModel):
    username: Name
    password: str


def add_token_route(app: FastAPI, accounts: Accounts, logins: Logins, ledger: Ledger) -> None:
    """Add the route."""

    def begin(name: str, password: str) -> dict[str, Any]:
        try:
            right = accounts.is_password(name, password)
        except TooManyGuesses as error:
            detail = "the password of this name was wrong too often: wait a minute"
            raise HTTPException(429, detail, headers={"Retry-After": "60"}) from error
        ledger.note(name, "login" if right else LOGIN_REFUSED)
        if not right:
            raise HTTPException(401, "name or password is wrong", headers={"WWW-Authenticate": "Bearer"})
        tokens = logins.begin(name)
        return {"access_token": tokens.access, "refresh_token": tokens.refresh, "token_type": "bearer",
                "expires_in": tokens.seconds}  # fmt: skip

    @app.post("/auth/token/", tags=["people"])
    async def token(request: Request) -> dict[str, Any]:
        """Exchange username and password for a token."""
        limit_body(request, LONGEST)
        try:
            if request.headers.get("content-type", "").startswith("application/json"):
                given = _Login.model_validate_json(await request.body())
            else:
                given = _Login.model_validate(dict(await request.form()))
        except ValueError as error:
            raise Refused(400, "give username and password, in a form") from error
        return await run_in_threadpool(begin, given.username, given.password)
