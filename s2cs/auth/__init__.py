"""Who is asking: authenticators that turn a bearer token into an identity.

A token is a secret: none is logged, none stands in an error, and none is shown to an authenticator that it is
not meant for (a local token or an institute's own must not travel to Globus). So each says which tokens it
recognises, by their shape alone, and a chain asks the first that does; its answer is the answer.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ministream.base.errors import UserError

NO_LOGIN = "INVALID_TOKEN"
"""What SciStream's clients send instead of a token when their user has not logged in to Globus."""

_TOKEN = re.compile(r"[!-~]{1,16384}")


@dataclass(frozen=True, slots=True)
class Identity:
    """Somebody who is known: a name, and who vouches for it. The same name of two issuers is two people."""

    subject: str
    issuer: str

    def __str__(self) -> str:
        return f"{self.subject} ({self.issuer})"


class Refused(UserError):  # noqa: N818 - a verdict
    """The token is not accepted; the text may be shown to whoever sent it."""


class Unreachable(Refused):
    """Whether the token is good could not be found out, through no fault of its owner; asking again may help."""


class Authenticator(Protocol):
    """Something that knows who a token belongs to."""

    accepts: str
    """The tokens that it takes, for a sentence: "a local token (s2cs token add)"."""

    def recognises(self, token: str) -> bool:
        """Return whether `token` looks like one of its own, good or not."""
        ...

    async def identify(self, token: str) -> Identity:
        """Return who `token` belongs to; raise `Refused` with the reason, which never holds the token."""
        ...


class Chain:
    """Several authenticators, each asked for the tokens that it recognises, the first one first."""

    def __init__(self, authenticators: Sequence[Authenticator]) -> None:
        if not authenticators:
            raise UserError("nobody could be let in: name a token file, an OpenID issuer or Globus")
        self._authenticators = tuple(authenticators)
        self.accepts = ", or ".join(a.accepts for a in authenticators)

    def recognises(self, token: str) -> bool:
        """Return whether any of them recognises `token`."""
        return any(a.recognises(token) for a in self._authenticators)

    async def identify(self, token: str) -> Identity:
        """Return who `token` belongs to, by the first authenticator that recognises it."""
        if not token:
            raise Refused(f"no token was sent; this control server takes {self.accepts}")
        if not _TOKEN.fullmatch(token):
            raise Refused("what was sent is no token: it holds blanks or other characters that no token has")
        for authenticator in self._authenticators:
            if authenticator.recognises(token):
                return await authenticator.identify(token)
        problem = "you are not logged in" if token == NO_LOGIN else "the token is of a kind that is not accepted here"
        raise Refused(f"{problem}; this control server takes {self.accepts}")


class Anonymous:
    """Takes everybody for the same person: only for `--insecure-no-auth`."""

    accepts = "anything"

    def recognises(self, token: str) -> bool:  # noqa: ARG002 - it is the point
        """Return True."""
        return True

    async def identify(self, token: str) -> Identity:  # noqa: ARG002 - it is the point
        """Return the identity that all have in common."""
        return Identity("anonymous", "nobody")


def read_token(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Return the token in a call's metadata: `authorization`, bare as SciStream sends it or after `Bearer `."""
    for key, value in metadata:
        if key == "authorization" and isinstance(value, str):
            head, _, rest = value.strip().partition(" ")
            return rest.strip() if head.lower() == "bearer" else value.strip()
    return ""
