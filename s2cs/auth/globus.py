"""Globus logins, as SciStream uses them: the service is asked about each token (RFC 7662, introspection).

The control server is registered with Globus under a client id and proves itself by its secret; users log in for
the scope `scistream` of that client. What Globus said about a token holds for `CACHED` seconds here, since each
tunnel takes several calls; a token is remembered by its hash only.
"""

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from ministream.base.errors import UserError
from ministream.base.log import get_logger
from s2cs.auth import NO_LOGIN, Identity, Refused, Unreachable
from s2cs.auth.tokens import PREFIX
from s2cs.auth.web import ask, check_url

AUTH = "https://auth.globus.org"
INTROSPECTION = f"{AUTH}/v2/oauth2/token/introspect"

CACHED = 60.0
"""Seconds: at most this long a login is still accepted after its user has withdrawn it."""

MAX_CACHED = 1024
AT_ONCE = 4
"""Questions that may be under way together: a flood of wrong tokens must not take every thread."""

Verdict = Identity | Refused


class GlobusAuthenticator:
    """Accepts logins for the scope of the Globus client `client_id`; `clock` gives seconds since 1970."""

    def __init__(
        self,
        client_id: str,
        client_secret: str,
        *,
        endpoint: str = INTROSPECTION,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not (client_id and client_secret):
            raise UserError("Globus answers only a server that it knows: give --client-id and --client-secret")
        self._client, self._login = client_id, (client_id, client_secret)
        self._scope = f"{AUTH}/scopes/{client_id}/scistream"
        self._endpoint, self._clock = check_url(endpoint), clock
        self._verdicts: OrderedDict[str, tuple[float, Verdict]] = OrderedDict()
        self._turns = asyncio.Semaphore(AT_ONCE)
        self.accepts = f"a Globus login (s2uc login --scope {client_id})"

    def recognises(self, token: str) -> bool:
        """Return whether `token` may be Globus's: they have no form of their own, but aren't signed texts (JWT)."""
        return not token.startswith(PREFIX) and "." not in token

    async def identify(self, token: str) -> Identity:
        """Return who `token` belongs to, as Globus said within the last minute."""
        if token == NO_LOGIN:
            raise Refused(f"you are not logged in to Globus; log in: s2uc login --scope {self._client}")
        digest = hashlib.sha256(token.encode()).hexdigest()
        verdict = self._remembered(digest)
        if verdict is None:
            async with self._turns:
                verdict = self._remembered(digest) or await self._ask(token, digest)
        if isinstance(verdict, Refused):
            raise Refused(str(verdict))
        return verdict

    def _remembered(self, digest: str) -> Verdict | None:
        until, verdict = self._verdicts.get(digest, (0.0, None))
        return verdict if until > self._clock() else None

    async def _ask(self, token: str, digest: str) -> Verdict:
        try:
            answer = await ask(self._endpoint, form={"token": token}, login=self._login)
        except Unreachable as error:
            get_logger().error("Globus can't be asked about a login", reason=str(error))
            raise Unreachable(
                "Globus did not tell whether the login is good; try again, and if that does not help, the operator of "
                "this control server should look at its log and check its --client-id and --client-secret"
            ) from error
        until = self._clock() + CACHED
        verdict = self._judge(answer)
        if isinstance(verdict, Identity):
            until = min(until, answer["exp"])
        self._verdicts[digest] = (until, verdict)
        while len(self._verdicts) > MAX_CACHED:
            self._verdicts.popitem(last=False)
        return verdict

    def _judge(self, answer: dict[str, Any]) -> Verdict:
        """Return who the login belongs to, or why it is not good."""
        again = f"log in again: s2uc login --scope {self._client}"
        expires = answer.get("exp")
        if answer.get("active") is not True:
            return Refused(f"Globus does not know the login, or it has ended; {again}")
        if not (isinstance(expires, int | float) and expires > self._clock()):
            return Refused(f"the Globus login has expired; {again}")
        if self._scope not in str(answer.get("scope")).split():
            return Refused(f"the Globus login was not given for this control server; {again}")
        subject = answer.get("username") or answer.get("sub")
        if not isinstance(subject, str):
            return Refused(f"Globus does not say whose login it is; {again}")
        return Identity(subject, AUTH)
