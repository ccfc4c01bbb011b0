"""Tokens of an OpenID Connect issuer: signed statements (JWT), checked against the keys that the issuer publishes.

Only asymmetric signatures count, and a key is used only with the algorithms of its own type: with a shared-secret
one (HS256) the issuer's public key would be the secret, and `none` is no signature. The keys are fetched when
first needed, anew once they are `FRESH` seconds old, and at once (but not more often than every `RETRY` seconds,
whatever strangers send) when a token names one that is not known, which is how a change of keys is noticed.
While the issuer can't be reached, known keys serve for `STALE` seconds.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, cast

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from ministream.base.errors import UserError
from ministream.base.log import get_logger
from s2cs.auth import Identity, Refused, Unreachable
from s2cs.auth.web import ask, check_url

_KEY_TYPES = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")

FRESH, STALE, RETRY = 300.0, 3600.0, 10.0
LEEWAY = 60.0
"""Seconds by which the issuer's clock and ours may differ."""

MIN_RSA_BITS = 2048

Key = dict[str, Any]


class OidcAuthenticator:
    """Accepts what `issuer` (its exact URL) has signed for `audience`.

    `claim` names the claim that becomes the subject; an `email` counts only if the issuer has verified it.
    `clock` gives seconds for the age of keys.
    """

    def __init__(
        self, issuer: str, audience: str, *, claim: str = "sub", clock: Callable[[], float] = time.monotonic
    ) -> None:
        if not audience:
            raise UserError(f"no audience for {issuer}: without one, tokens made for other services would be accepted")
        self._issuer, self._audience, self._claim = check_url(issuer), audience, claim
        self._keys = _KeySet(issuer, clock)
        self.accepts = f"a token that {issuer} issued for {audience}"

    def recognises(self, token: str) -> bool:
        """Return whether `token` says (unproven as yet) that this issuer made it."""
        try:
            claims = jwt.decode(token, options={"verify_signature": False})
        except jwt.InvalidTokenError:
            return False
        return claims.get("iss") == self._issuer

    async def identify(self, token: str) -> Identity:
        """Return who `token` belongs to, after checking signature, issuer, audience and times."""
        try:
            header = jwt.get_unverified_header(token)
        except jwt.InvalidTokenError as error:
            raise Refused("what was sent is no signed token (JWT)") from error
        algorithm = str(header.get("alg"))[:20]
        if algorithm not in ALGORITHMS:
            raise Refused(
                f"the token is signed by {algorithm!r}, which proves nothing here; use {', '.join(ALGORITHMS)}"
            )
        key = _public_key(await self._keys.find(header.get("kid"), algorithm), algorithm)
        claims = self._verify(token, key, algorithm)
        if self._claim == "email" and claims.get("email_verified") is not True:
            raise Refused("the token's e-mail address has not been verified by its issuer")
        subject = claims.get(self._claim)
        if not isinstance(subject, str) or not subject:
            raise Refused(f"the token names nobody: it has no claim {self._claim!r}")
        return Identity(subject, self._issuer)

    def _verify(self, token: str, key: Any, algorithm: str) -> dict[str, Any]:
        try:
            return jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.ExpiredSignatureError as error:
            raise Refused("the token has expired; log in again") from error
        except (jwt.ImmatureSignatureError, jwt.InvalidIssuedAtError) as error:
            raise Refused("the token is not valid yet; is the clock of this host, or the issuer's, wrong?") from error
        except jwt.InvalidAudienceError as error:
            raise Refused(f"the token is meant for another service; ask for one for {self._audience}") from error
        except jwt.InvalidIssuerError as error:
            raise Refused(
                f"the token was issued by somebody else; this control server trusts {self._issuer}"
            ) from error
        except jwt.MissingRequiredClaimError as error:
            raise Refused(f"the token has no claim {error.claim!r}") from error
        except jwt.InvalidSignatureError as error:
            raise Refused(f"the token was not signed by {self._issuer}, or has been altered") from error
        except jwt.InvalidTokenError as error:
            raise Refused("the token is malformed; log in again") from error


class _KeySet:
    """The keys that an issuer publishes (JWKS), fetched through its discovery document."""

    def __init__(self, issuer: str, clock: Callable[[], float]) -> None:
        self._issuer, self._clock = issuer, clock
        self._keys: list[Key] = []
        self._fetched = self._tried = -float("inf")
        self._lock = asyncio.Lock()

    async def find(self, kid: object, algorithm: str) -> Key:
        """Return the one key with that id (the only fitting one, where the token names none)."""
        if self._clock() - self._fetched > FRESH:
            await self._refresh()
        fitting = self._fitting(kid, algorithm)
        if not fitting:
            await self._refresh()
            fitting = self._fitting(kid, algorithm)
        if len(fitting) != 1:
            raise Refused(f"the token names no signing key that {self._issuer} publishes")
        return fitting[0]

    def _fitting(self, kid: object, algorithm: str) -> list[Key]:
        kind = _KEY_TYPES[algorithm[:2]]
        return [
            key
            for key in self._keys
            if key.get("kty") == kind
            and key.get("use", "sig") == "sig"
            and key.get("alg", algorithm) == algorithm
            and (kid is None or key.get("kid") == kid)
        ]

    async def _refresh(self) -> None:
        """Fetch the keys, unless that was tried a moment ago; without an answer go on with those known."""
        async with self._lock:
            if self._clock() - self._tried >= RETRY:
                self._tried = self._clock()
                try:
                    self._keys = await self._fetch()
                    self._fetched = self._clock()
                except Unreachable as error:
                    get_logger().error("keys of the token issuer can't be fetched", reason=str(error))
        if self._clock() - self._fetched > STALE:
            self._keys = []
            raise Unreachable(
                f"the keys of {self._issuer} can't be fetched, so no token of its can be checked; try again"
            )

    async def _fetch(self) -> list[Key]:
        document = await ask(self._issuer.rstrip("/") + "/.well-known/openid-configuration")
        if document.get("issuer") != self._issuer:
            raise Unreachable(
                f"{self._issuer} describes itself as another issuer; give the URL that it names itself by"
            )
        try:
            answer = await ask(check_url(str(document.get("jwks_uri"))))
        except Unreachable:
            raise
        except UserError as error:
            raise Unreachable(f"{self._issuer} names its keys at an address that is not acceptable: {error}") from error
        keys = answer.get("keys")
        return [cast("Key", key) for key in keys if isinstance(key, dict)] if isinstance(keys, list) else []


def _public_key(key: Key, algorithm: str) -> Any:
    try:
        public = jwt.PyJWK(key, algorithm=algorithm).key
    except (jwt.PyJWTError, ValueError, KeyError, TypeError) as error:
        raise Refused("the issuer's signing key can't be used: it is malformed or of an unknown kind") from error
    if isinstance(public, RSAPublicKey) and public.key_size < MIN_RSA_BITS:
        raise Refused(f"the issuer's signing key is too short: {public.key_size} bits of at least {MIN_RSA_BITS}")
    return public
