"""Signed links: who has one may fetch one ticket's result until a given time, without a login."""

import hmac
from hashlib import sha256
from urllib.parse import urlencode


class Links:
    """Makes links and tells whether one is ours.

    Parameters
    ----------
    key
        Secret of this service.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def make(self, base: str, ticket: str, until: float) -> str:
        """Return the URL of a ticket's result, good until a time in seconds since 1970."""
        query = {"until": int(until), "signature": self._sign(ticket, int(until))}
        return f"{base}/ticket/{ticket}/result?{urlencode(query)}"

    def is_good(self, ticket: str, until: int, signature: str, now: float) -> bool:
        """Return whether this is our signature, and still good."""
        return hmac.compare_digest(self._sign(ticket, until).encode(), signature.encode()) and now < until

    def _sign(self, ticket: str, until: int) -> str:
        return hmac.new(self._key, f"result\n{ticket}\n{until}".encode(), sha256).hexdigest()
