"""Bearer tokens of programs and of operators, in a file; people log in (`logins`)."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import Field

from delivery.settings import NAME
from ministream.base.errors import UserError
from ministream.base.tokens import PrivateTokenFile, TokenEntry, TokenFileContent

PREFIX = "delivery_"
"""What our tokens begin with: lets scanners for leaked secrets find them."""


class Entry(TokenEntry):
    """A token as the file knows it: without `projects` it is for all of them."""

    projects: list[str] = Field(default_factory=list)

    def is_for(self, project: str) -> bool:
        """Return whether the bearer may mirror `project`."""
        return not self.projects or project in self.projects


class _Content(TokenFileContent[Entry]):
    format: Literal["delivery tokens 1"] = "delivery tokens 1"


class TokenFile(PrivateTokenFile[Entry]):
    """The tokens in the file `path`; `clock` gives seconds since 1970."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        super().__init__(path, _Content, "delivery", clock)

    def add(self, name: str, lifetime: float, projects: list[str] | None = None) -> str:
        """Make a token for `name`, good for `lifetime` seconds, and return it: nobody can find it out later.

        Raises
        ------
        UserError
            If the name or a project is none, the name has a token that is still good, or the file can't be written.
        """
        for given in [name, *(projects or [])]:
            if not NAME.fullmatch(given):
                raise UserError(f"{given!r} is no name: give letters, digits and . _ -")
        if lifetime <= 0:
            raise UserError("a token that expires at once is of no use: give a duration such as '1 year' or '30 days'")
        return self._add(
            name,
            PREFIX,
            lambda digest, now: Entry(name=name, sha256=digest, expires=now + lifetime, projects=projects or []),
        )

    def bearer(self, token: str) -> str | None:
        """Return who a token belongs to; None if it is nobody's, or expired."""
        entry = self._find(token)
        return entry.name if entry is not None and entry.expires > self._clock() else None

    def holders(self, project: str) -> set[str]:
        """Return who may mirror `project` now."""
        return {entry.name for entry in self._current() if entry.is_for(project) and entry.expires > self._clock()}

    def _current(self) -> list[Entry]:
        try:
            return super()._current()
        except OSError as error:
            raise UserError(f"token file {self._path}: {error.strerror}; make it by `delivery token add`") from error
