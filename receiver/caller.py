"""The receiver, as its clients call it: one connection that trusts its certificate and shows its token."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import httpx

from ministream.base.errors import UserError
from ministream.base.owner import Owner
from receiver.access import Access

ANSWER = 10.0
"""Seconds until an answer is given up, that of the handshake, too, since a busy machine may let the receiver wait for
some; a follower is sent a heartbeat in half that time."""


class AwayError(UserError):
    """The receiver cannot be reached, or the connection has broken."""


class RefusedError(UserError):
    """The receiver has answered, and does not do it."""


class UnknownError(RefusedError):
    """The receiver has no such run, or post."""


class Caller(Owner):
    """A receiver; a context that closes the connection.

    Parameters
    ----------
    url
        `https://HOST:PORT`.
    access
        Folder with its token and certificate, read anew by each of these.
    plaintext
        Let `url` begin with http://.

    Raises
    ------
    UserError
        If the files are not there (as yet), or the URL is of the other kind.
    """

    def __init__(self, url: str, access: Access, *, plaintext: bool = False) -> None:
        wanted = "http" if plaintext else "https"
        if not url.startswith(f"{wanted}://"):
            hint = "leave out --plaintext-receiver" if plaintext else "a token in plain HTTP is for everybody to read"
            raise UserError(f"{url!r} does not begin with {wanted}://: {hint}")
        self.url = url
        self._client = httpx.Client(
            base_url=url,
            verify=True if plaintext else access.tls(),
            headers={"Authorization": f"Bearer {access.token()}"},
            timeout=ANSWER,
            trust_env=False,  # no proxy of this machine's environment is to see the token
        )

    def close(self) -> None:
        """Close the connection; who reads from it is given `AwayError`."""
        self._client.close()

    def status(self) -> dict[str, Any]:
        """Return what the receiver does."""
        return self._call("GET", "/status")

    def begin(
        self, listeners: Sequence[str], options: Mapping[str, Any], tunnel: Mapping[str, Any] | None = None
    ) -> str:
        """Begin a run; return its id."""
        body = {"listeners": list(listeners), "options": dict(options), "tunnel": dict(tunnel or {})}
        return str(self._call("POST", "/run", body)["run"])

    def stop(self, run: str, reason: str) -> None:
        """Ask a run to end."""
        self._call("POST", f"/run/{run}/stop", {"reason": reason})

    def events(self, run: str, after: int = 0) -> Iterator[dict[str, Any] | None]:
        """Yield the events of a run from the one after number `after` to the final one; None for a heartbeat."""
        with self._explained(), self._client.stream("GET", f"/run/{run}/events", params={"after": after}) as answer:
            self._check(answer)
            for line in answer.iter_lines():
                yield json.loads(line) if line else None

    def join(self, number: str, name: str) -> dict[str, Any] | None:
        """Ask for a post; None if there is none yet, which takes a moment to be said."""
        post = self._call("POST", "/workers", {"number": number, "name": name})["post"]
        return None if post is None else dict(post)

    def report(self, number: str, run: str, events: Sequence[Mapping[str, Any]], ended: str | None) -> str:
        """Tell what happened at a post; return why to stop, empty to go on."""
        body = {"run": run, "events": list(events), "ended": ended}
        return str(self._call("POST", f"/workers/{number}/events", body)["stop"])

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        with self._explained():
            answer = self._client.request(method, path, json=body)
            self._check(answer)
            return dict(answer.json())

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (httpx.TransportError, httpx.StreamError) as error:
            raise AwayError(f"the receiver at {self.url} {_why(str(error))}") from error
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, UserError):
                raise
            raise AwayError(f"the receiver at {self.url} gave no sensible answer: {error}") from error

    def _check(self, answer: httpx.Response) -> None:
        if answer.is_success:
            return
        answer.read()
        try:
            detail = str(answer.json()["detail"])
        except (ValueError, KeyError, TypeError):
            detail = f"HTTP status {answer.status_code}"
        kind = UnknownError if answer.status_code == httpx.codes.NOT_FOUND else RefusedError
        raise kind(f"the receiver at {self.url} refused: {detail}")


def _why(text: str) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return "shows another certificate than the one in its access folder here: copy that folder anew"
    if "WRONG_VERSION_NUMBER" in text:
        return "does not speak TLS: was it started with --plaintext?"
    return f"cannot be reached: {text or 'no answer in time'}"
