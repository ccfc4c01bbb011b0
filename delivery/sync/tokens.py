"""Bearer tokens of brokers, in a file: no service to run.

A token is 256 random bits and is shown once. The file keeps its SHA-256 hash: of so much chance nothing can be guessed
back. It is replaced as a whole, under a lock, and read again once it has changed: a running server knows new tokens,
and revoked ones, with the next request.
"""

import fcntl
import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from delivery.sync.settings import NAME
from ministream.base.errors import UserError
from ministream.base.files import whole_or_absent

PREFIX = "sync_"
"""What our tokens begin with: lets scanners for leaked secrets find them."""

_PRIVATE = 0o600


class Entry(BaseModel):
    """A token as the file knows it: `expires` in seconds since 1970; without `projects`, for all of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    sha256: str
    expires: float
    projects: list[str] = []

    def is_for(self, project: str) -> bool:
        """Return whether the bearer may mirror `project`."""
        return not self.projects or project in self.projects


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format: Literal["delivery tokens 1"] = "delivery tokens 1"
    tokens: list[Entry] = []


class TokenFile:
    """The tokens in the file `path`; `clock` gives seconds since 1970."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock = path, clock
        self._stamp: tuple[int, int, int] | None = None
        self._read: list[Entry] = []

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
        token = PREFIX + secrets.token_urlsafe(32)
        with self._locked():
            others = [entry for entry in self.entries() if entry.name != name or entry.expires > self._clock()]
            if any(entry.name == name for entry in others):
                raise UserError(f"{name} has a token already: revoke it first (delivery token revoke {name})")
            expires = self._clock() + lifetime
            self._write([*others, Entry(name=name, sha256=_hash(token), expires=expires, projects=projects or [])])
        return token

    def revoke(self, name: str) -> None:
        """Make the token of `name` worthless from now on; UserError if there is none."""
        with self._locked():
            entries = self.entries()
            kept = [entry for entry in entries if entry.name != name]
            if len(kept) == len(entries):
                names = ", ".join(sorted(entry.name for entry in entries)) or "nobody"
                raise UserError(f"{name} has no token in {self._path}; there: {names}")
            self._write(kept)

    def entries(self) -> list[Entry]:
        """Return all tokens, expired ones too; none where there is no file.

        Raises
        ------
        UserError
            If others may read or write the file, or it is not one of ours.
        """
        try:
            with self._path.open("rb") as file:
                mode, content = os.fstat(file.fileno()).st_mode, file.read()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(f"token file {self._path}: {error.strerror}") from error
        if mode & 0o077:
            raise UserError(f"token file {self._path} is open to others: close it (chmod 600 {self._path})")
        try:
            return _Content.model_validate_json(content).tokens
        except ValidationError as error:  # whose own text would quote the file
            raise UserError(f"token file {self._path} is not one that delivery wrote: restore it") from error

    def bearer(self, token: str) -> str | None:
        """Return who a token belongs to; None if it is nobody's, or expired."""
        digest, found = _hash(token), None
        for entry in self._current():  # every one of them, in constant time
            if hmac.compare_digest(entry.sha256, digest) and entry.expires > self._clock():
                found = entry.name
        return found

    def holders(self, project: str) -> set[str]:
        """Return who may mirror `project` now."""
        return {entry.name for entry in self._current() if entry.is_for(project) and entry.expires > self._clock()}

    def _current(self) -> list[Entry]:
        try:
            status = self._path.stat()
        except OSError as error:
            raise UserError(f"token file {self._path}: {error.strerror}; make it by `delivery token add`") from error
        stamp = status.st_ino, status.st_size, status.st_ctime_ns
        if stamp != self._stamp:
            self._read, self._stamp = self.entries(), stamp
        return self._read

    def _write(self, entries: list[Entry]) -> None:
        with whole_or_absent(self._path, _PRIVATE) as aside:
            aside.write_text(_Content(tokens=entries).model_dump_json(indent=1) + "\n")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let one program at a time change the file; the lock is a file beside it, since it is itself replaced."""
        lock = self._path.with_name(f".{self._path.name}.lock")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _PRIVATE)
        except OSError as error:
            raise UserError(f"token file {self._path} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
