"""Sends on what is stored: to another intake, by HTTP PUT, or to S3; it is sent when the far end has the same bytes.

Another intake proves them by the tree digest. Of a PUT and of S3, the bytes are read back: no server's word for them
says so much. What is there already from a try that was cut is not sent again by the first way; by the others it is.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import httpx

from delivery.asking import checked, secret
from delivery.stores import Store
from delivery.upload.digests import tree_of
from delivery.upload.ledger import Forward, Ledger, Upload
from delivery.upload.sender import Line, Sender
from delivery.upload.stores import ChunkStore
from ministream.base.errors import UserError
from ministream.base.log import get_logger

TIMEOUT = 60.0
"""Seconds of silence after which a try is given up."""

PATIENCE = 30.0
"""Seconds that a try waits for a line that is cut, before the job waits longer."""


class Target(Protocol):
    """Where copies go."""

    def send(self, upload: Upload, content: "Content") -> str:
        """Send a copy and return its tree digest as the far end has it."""
        ...


class Content:
    """What is stored of an upload: to be sent by `sender.Sender`, or as a stream."""

    def __init__(self, store: ChunkStore, upload: Upload) -> None:
        self.size, self._slot, self._store = upload.size, upload.slot, store

    def blocks(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield bytes."""
        return self._store.read(self._slot, start, stop)

    def part(self, start: int, stop: int) -> dict[str, Any]:  # noqa: ARG002 - of whatever store
        """Return nothing: the bytes may lie anywhere."""
        return {}

    def whole(self) -> Iterator[bytes]:
        """Yield all bytes."""
        return self.blocks(0, self.size)

    def check(self) -> None:
        """Do nothing: the tree digest tells."""


class Forwarding:
    """Sends copies to one target.

    Parameters
    ----------
    ledger, store
        The service's parts.
    target
        Where to.
    attempts
        Tries until a copy is given up.
    """

    def __init__(self, ledger: Ledger, store: ChunkStore, target: Target, attempts: int) -> None:
        self._ledger, self._store, self._target, self._attempts = ledger, store, target, attempts

    def forward(self, name: str, attempt: int) -> str:
        """Try to send a copy; returns why it is to be tried again, or nothing."""
        upload = self._ledger.get(name)
        if upload is None or upload.forward != Forward.WAITING:
            return ""
        reason = self._try(upload)
        state = Forward.DONE
        if reason:
            state = Forward.FAILED if attempt >= self._attempts else Forward.WAITING
            get_logger().warning("not sent on", upload=name, attempt=attempt, reason=reason)
        self._ledger.set_forward(name, state, reason, attempt)
        return reason if state == Forward.WAITING else ""

    def _try(self, upload: Upload) -> str:
        try:
            found = self._target.send(upload, Content(self._store, upload))
        except (UserError, httpx.HTTPError, OSError) as error:
            return str(error) or type(error).__name__
        return "" if found == upload.tree else f"the far end has other bytes: their tree digest is {found}"


def open_target(url: str, token_file: Path | None) -> Target:
    """Return the target that a URL names, as `settings.FORWARDS` lists them."""
    if url.startswith("s3://"):
        return _S3(url)
    headers = {"Authorization": f"Bearer {secret(token_file)}"} if token_file else {}
    plain = url.removeprefix("put+")
    client = httpx.Client(base_url=plain.rstrip("/"), headers=headers, timeout=TIMEOUT)
    return _Put(client) if url != plain else _Intake(client)


class _Intake:
    """Another service like this one."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def send(self, upload: Upload, content: Content) -> str:
        """Send chunks, in parallel, those alone that are not there."""
        sender = Sender(self._client, Line(upload.chunk_size, patience=PATIENCE))
        answer = sender.send(content, f"{upload.owner}/{upload.name}", key=f"copy of {upload.id}")
        return str(answer["tree"])


class _Put:
    """Any server that takes PUT and gives by GET what it took."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def send(self, upload: Upload, content: Content) -> str:
        """Stream it there, and back."""
        place = "/" + quote(upload.place or "")
        checked(self._client.put(place, content=content.whole(), headers={"Content-Length": str(upload.size)}))
        with self._client.stream("GET", place, headers={"Accept-Encoding": "identity"}) as answer:
            return tree_of(checked(answer).iter_raw(), upload.chunk_size)


class _S3:
    """A bucket."""

    def __init__(self, url: str) -> None:
        self._store = Store(url)

    def send(self, upload: Upload, content: Content) -> str:
        """Stream it there, and back."""
        key = upload.place or ""
        self._store.put_stream(key, content.whole())
        return tree_of(self._store.open(key, "").read(0, upload.size), upload.chunk_size)
