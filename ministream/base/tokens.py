"""Bearer tokens in a file: no service to run, no network to ask.

A token is 256 random bits and is shown once, when it is made. The file keeps its SHA-256 hash only: of that much
chance nothing can be guessed back, so that a slow password hash would protect nothing more. The file is replaced
as a whole, under a lock, and read again as soon as it has changed: a running server knows new tokens and revoked
ones with the next call.
"""

import fcntl
import hashlib
import hmac
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ministream.base.errors import UserError
from ministream.base.files import whole_or_absent

_PRIVATE = 0o600


class TokenEntry(BaseModel):
    """A token as its file knows it: `expires` in seconds since 1970."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    sha256: str
    expires: float


E = TypeVar("E", bound=TokenEntry)


class TokenFileContent(BaseModel, Generic[E]):
    """What a token file holds."""

    model_config = ConfigDict(extra="forbid")

    tokens: list[E] = Field(default_factory=list)


class PrivateTokenFile(Generic[E]):
    """The tokens in the file `path`, laid out as `content`; `command` makes them by its sub-command `token`.

    `clock` gives seconds since 1970.
    """

    def __init__(
        self, path: Path, content: type[TokenFileContent[E]], command: str, clock: Callable[[], float]
    ) -> None:
        self._path, self._content, self._command, self._clock = path, content, command, clock
        self._version: tuple[int, int, int] | None = None
        self._entries: list[E] = []

    def entries(self) -> list[E]:
        """Return the tokens in the file, expired ones too; none where there is no file.

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
            return self._content.model_validate_json(content).tokens
        except ValidationError as error:  # whose own text would quote the file
            text = f"token file {self._path} is not one that {self._command} wrote: restore it"
            raise UserError(text) from error

    def revoke(self, name: str) -> None:
        """Make the token of `name` worthless from now on.

        Raises
        ------
        UserError
            If nobody of that name has one.
        """
        with self._locked():
            entries = self.entries()
            kept = [entry for entry in entries if entry.name != name]
            if len(kept) == len(entries):
                names = ", ".join(sorted(entry.name for entry in entries)) or "nobody"
                raise UserError(f"{name} has no token in {self._path}; there: {names}")
            self._write(kept)

    def _add(self, name: str, prefix: str, make: Callable[[str, float], E]) -> str:
        """Return a new token for `name`, whose entry is `make(hash, now)`; UserError if that name has a good one."""
        token = prefix + secrets.token_urlsafe(32)
        with self._locked():
            now, entries = self._clock(), self.entries()
            if any(entry.name == name and entry.expires > now for entry in entries):
                raise UserError(f"{name} has a token already: revoke it first ({self._command} token revoke {name})")
            self._write([*(entry for entry in entries if entry.name != name), make(_hash(token), now)])
        return token

    def _find(self, token: str) -> E | None:
        """Return the entry of `token`, expired or not, after comparing with every one of them in constant time."""
        digest, found = _hash(token), None
        for entry in self._current():
            if hmac.compare_digest(entry.sha256, digest):
                found = entry
        return found

    def _current(self) -> list[E]:
        """Return the file's entries, read again if it is another file than last time; OSError if there is none."""
        try:
            status = self._path.stat()
            version = (status.st_ino, status.st_size, status.st_ctime_ns)
            if version != self._version:
                self._entries, self._version = self.entries(), version
        except (OSError, UserError):
            self._version = None
            raise
        return self._entries

    def _write(self, entries: list[E]) -> None:
        with whole_or_absent(self._path, _PRIVATE) as aside:
            aside.write_text(self._content(tokens=entries).model_dump_json(indent=1) + "\n")

    def _make_folder(self) -> None:
        """Make the file's folder where it does not exist."""
        self._path.parent.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let one program at a time change the file; the lock is a file beside it, since it is itself replaced."""
        lock = self._path.with_name(f".{self._path.name}.lock")
        try:
            self._make_folder()
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
