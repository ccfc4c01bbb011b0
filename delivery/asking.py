"""How clients ask services: who they are, what an answer says, and what they do while none comes."""

import getpass
import re
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Protocol, TypeVar

import httpx

from ministream.base.errors import UserError
from ministream.base.log import get_logger

PAUSE = 1.0
"""Seconds between two tries of a service that does not answer."""

T = TypeVar("T")


class Service(Protocol):
    """The settings of a client: where the service is, and who asks."""

    @property
    def service(self) -> str:
        """Address of the service."""
        ...

    @property
    def token_file(self) -> Path | None:
        """File with a bearer token."""
        ...

    @property
    def user(self) -> str:
        """Name to log in with."""
        ...

    @property
    def password_file(self) -> Path | None:
        """File with its password."""
        ...


def patiently(action: Callable[[], T], service: str, patience: float, progress: Callable[[], int] = lambda: 0) -> T:
    """Do `action`, again and again if the line is cut, until `patience` (seconds) runs out without progress."""
    began, reached, told = time.monotonic(), progress(), False
    deadline = began + patience
    while True:
        try:
            return action()
        except httpx.TransportError as error:
            before, reached = reached, progress()
            if reached > before and patience:
                deadline = time.monotonic() + patience
                continue  # at once: the line works, though not for long
            if time.monotonic() > deadline:
                raise UserError(f"{service}: {error or type(error).__name__}; is it up?") from error
            if not told and time.monotonic() > began + PAUSE:  # who waits wants to know for what
                get_logger().warning("no answer yet", service=service, reason=str(error), tried_for_s=patience)
                told = True
            time.sleep(PAUSE)


class _Login(httpx.Auth):
    """Logs in before the first request, and again when a token has become too old."""

    def __init__(self, service: str, name: str, password: str) -> None:
        self._url, self._who = f"{service.rstrip('/')}/login", {"name": name, "password": password}
        self._token = ""

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        for _ in range(2):
            if not self._token:
                answer = yield httpx.Request("POST", self._url, json=self._who)
                answer.read()
                self._token = str(checked(answer).json()["access_token"])
            request.headers["Authorization"] = f"Bearer {self._token}"
            response = yield request
            if response.status_code != 401:
                return
            self._token = ""


class _Token(httpx.Auth):
    """Shows a token."""

    def __init__(self, token: str) -> None:
        self._token = token

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["Authorization"] = f"Bearer {self._token}"
        yield request


def auth_of(settings: Service) -> httpx.Auth | None:
    """Return how a client says who asks; asks a person for a password that no file holds."""
    if settings.token_file:
        return _Token(secret(settings.token_file))
    if settings.user:
        given = settings.password_file
        password = secret(given) if given else getpass.getpass(f"password of {settings.user}: ")
        return _Login(settings.service, settings.user, password)
    return None


def bearer_of(token_file: Path) -> str:
    """Return the value of the header `Authorization` that shows the token in a file.

    Raises
    ------
    UserError
        If the file can't be read, or holds no token.
    """
    try:
        token = token_file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"token file {token_file}: {error}") from error
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise UserError(f"token file {token_file} holds no token")
    return f"Bearer {token}"


def secret(path: Path) -> str:
    """Return the secret that a file holds."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}") from error


def checked(answer: httpx.Response) -> httpx.Response:
    """Return an answer that is a success; raise the service's words if it is none."""
    if answer.status_code in (502, 503, 504):
        raise httpx.RemoteProtocolError(f"{answer.status_code} {answer.reason_phrase}")
    if not answer.is_success:
        answer.read()
        raise UserError(f"{answer.url.copy_with(query=None)}: {answer.status_code} {detail_of(answer)}")
    return answer


def detail_of(answer: httpx.Response) -> str:
    """Return a service's words in an answer that refuses, or those of the status if it has none, or is not read."""
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError, httpx.ResponseNotRead):
        return answer.reason_phrase
