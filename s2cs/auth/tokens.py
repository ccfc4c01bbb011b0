"""Tokens of a small site, in a file."""

import re
import time
from collections.abc import Callable
from pathlib import Path

from ministream.base.errors import UserError
from ministream.base.log import get_logger
from ministream.base.tokens import PrivateTokenFile, TokenEntry, TokenFileContent
from s2cs.auth import Identity, Refused, Unreachable
from s2cs.files import make_private_folder

PREFIX = "s2cs_"
"""What our tokens begin with: tells them from others', and lets scanners for leaked secrets find them."""

ISSUER = "local"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


class Entry(TokenEntry):
    """A token as the file knows it; times in seconds since 1970."""

    created: float


class TokenFile(PrivateTokenFile[Entry]):
    """The tokens in the file `path`; `clock` gives seconds since 1970."""

    accepts = "a local token (from this site's operator: s2cs token add NAME)"

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        super().__init__(path, TokenFileContent[Entry], "s2cs", clock)

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
        return self._add(
            name, PREFIX, lambda digest, now: Entry(name=name, sha256=digest, created=now, expires=now + lifetime)
        )

    def recognises(self, token: str) -> bool:
        """Return whether `token` begins as ours do."""
        return token.startswith(PREFIX)

    async def identify(self, token: str) -> Identity:
        """Return who `token` belongs to; reads the file (a millisecond) if it has changed."""
        entry = self._find(token)
        if entry is None:
            raise Refused("the local token is unknown or was revoked; ask the operator of this site for a new one")
        if entry.expires <= self._clock():
            day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(entry.expires))
            raise Refused(f"the token of {entry.name} expired on {day}; ask the operator of this site for a new one")
        return Identity(entry.name, ISSUER)

    def _current(self) -> list[Entry]:
        try:
            return super()._current()
        except (OSError, UserError) as error:
            get_logger().error("no local token can be judged", reason=str(error))
            raise Unreachable("this control server can't read its tokens; its log tells the operator why") from error

    def _make_folder(self) -> None:
        if not self._path.parent.is_dir():
            make_private_folder(self._path.parent)
