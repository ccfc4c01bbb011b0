"""Tokens of a small site, in a file: no service to run, no network to ask.

A token is 256 random bits and is shown once, when it is made. The file keeps its SHA-256 hash only: of that much
chance nothing can be guessed back, so that a slow password hash would protect nothing more. The file is replaced
as a whole, under a lock, and read again as soon as it has changed: a running server knows new tokens and revoked
ones with the next call.
"""

import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from ministream.base.errors import UserError
from ministream.base.files import whole_or_absent
from ministream.base.log import get_logger
from s2cs.auth import Identity, Refused, Unreachable
from s2cs.files import PRIVATE_FILE, make_private_folder

PREFIX = "s2cs_"
"""What our tokens begin with: tells them from others', and lets scanners for leaked secrets find them."""

ISSUER = "local"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


class Entry(BaseModel):
    """A token as the file knows it; times in seconds since 1970."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    sha256: str
    created: float
    expires: float


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid")

    tokens: list[Entry] = []


class TokenFile:
    """The tokens in the file `path`; `clock` gives seconds since 1970."""

    accepts = "a local token (from this site's operator: s2cs token add NAME)"

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock = path, clock
        self._version: tuple[int, int, int] | None = None
        self._entries: list[Entry] = []

    def add(self, name: str, lifetime: float) -> str:
        """Make a token for `name`, good for `lifetime` seconds, and return it: nobody can find it out later.

        Raises
        ------
        UserError
            If the name is not one, has a token that is still good, or the file can't be written.
        """
        if not _NAME.fullmatch(name):
            raise UserError(f"{name!r} is no name: give up to 64 letters, digits and . _ @ -")
        if lifetime <= 0:
            raise UserError("a token that expires at once is of no use: give a duration such as '30 days'")
        token = PREFIX + secrets.token_urlsafe(32)
        with self._locked():
            now = self._clock()
            entries = self.entries()
            if any(entry.name == name and entry.expires > now for entry in entries):
                raise UserError(f"{name} has a token already: revoke it first (s2cs token revoke {name})")
            new = Entry(name=name, sha256=_hash(token), created=now, expires=now + lifetime)
            self._write([*(entry for entry in entries if entry.name != name), new])
        return token

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

    def entries(self) -> list[Entry]:
        """Return the tokens in the file, expired ones too; none where there is no file.

        Raises
        ------
        UserError
            If others may read or write the file, or it is not one of ours.
        """
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                content = file.read()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(f"token file {self._path}: {error.strerror}") from error
        if status.st_mode & 0o077:
            raise UserError(f"token file {self._path} is open to others: close it (chmod 600 {self._path})")
        try:
            return _Content.model_validate_json(content).tokens
        except ValidationError as error:  # whose own text would quote the file
            raise UserError(f"token file {self._path} is not one that s2cs wrote: restore it") from error

    def recognises(self, token: str) -> bool:
        """Return whether `token` begins as ours do."""
        return token.startswith(PREFIX)

    async def identify(self, token: str) -> Identity:
        """Return who `token` belongs to; reads the file (a millisecond) if it has changed."""
        entry = self._find(_hash(token))
        if entry is None:
            raise Refused("the local token is unknown or was revoked; ask the operator of this site for a new one")
        if entry.expires <= self._clock():
            day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(entry.expires))
            raise Refused(f"the token of {entry.name} expired on {day}; ask the operator of this site for a new one")
        return Identity(entry.name, ISSUER)

    def _find(self, digest: str) -> Entry | None:
        """Return the entry of that hash, after comparing with every one of them in constant time."""
        found = None
        for entry in self._current():
            if hmac.compare_digest(entry.sha256, digest):
                found = entry
        return found

    def _current(self) -> list[Entry]:
        """Return the file's entries, read again if it is another file than last time."""
        try:
            status = self._path.stat()
            version = (status.st_ino, status.st_size, status.st_ctime_ns)
            if version != self._version:
                self._entries, self._version = self.entries(), version
        except (OSError, UserError) as error:
            self._version = None
            get_logger().error("no local token can be judged", reason=str(error))
            raise Unreachable("this control server can't read its tokens; its log tells the operator why") from error
        return self._entries

    def _write(self, entries: list[Entry]) -> None:
        with whole_or_absent(self._path, PRIVATE_FILE) as aside:
            aside.write_text(json.dumps(_Content(tokens=entries).model_dump(), indent=1) + "\n")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let one program at a time change the file; the lock is a file beside it, since it is itself replaced."""
        if not self._path.parent.is_dir():
            make_private_folder(self._path.parent)
        lock = self._path.with_name(f".{self._path.name}.lock")
        try:
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE)
        except OSError as error:
            raise UserError(f"token file {self._path} cannot be locked: {error.strerror}") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
