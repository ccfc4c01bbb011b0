"""Sends files to an intake: chunks in parallel, each with its digest, and what is there already not again.

Whatever is cut is sent again; the intake knows what has come, so that neither side notes anything for that. A chunk's
digest that the intake has was given by us and verified there: after a restart, nothing is read twice.
"""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import httpx

from delivery.asking import checked, patiently
from delivery.files.version import check_unchanged, stamp_of
from delivery.upload.digests import leaf, tree
from delivery.upload.sendfile import EXTENSION, Part
from ministream.base.errors import UserError
from ministream.base.log import get_logger

TRIES = 20
"""Times that a chunk is sent which arrives damaged."""

BLOCK = 128 << 10
"""Bytes of a file that are read and sent at a time: they stay in the processor's cache meanwhile."""

ASKED = 64
"""Chunks asked for at a time: are they known there?"""

_LATER = (408, 429, 500)
_DAMAGED, _BROKEN = 406, 400


class Source(Protocol):
    """What is to be sent; `blocks` is called by several threads at once."""

    size: int

    def blocks(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes from `start` up to, without, `stop`."""
        ...

    def part(self, start: int, stop: int) -> dict[str, Any]:
        """Return the same bytes as a request's extensions, where they are part of a file: see `sendfile`."""
        ...

    def check(self) -> None:
        """Raise UserError if it is not what it was any more."""
        ...


class FileSource:
    """An open file, which must stay as it is."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor, self._path = descriptor, path
        self.stamp = stamp_of(os.fstat(descriptor))
        self.size = self.stamp.size

    def blocks(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield bytes of the file."""
        while start < stop:
            block = os.pread(self._descriptor, min(BLOCK, stop - start), start)
            if not block:
                self.check()
                raise UserError(f"{self._path}: it can't be read to its end")
            yield block
            start += len(block)

    def part(self, start: int, stop: int) -> dict[str, Any]:
        """Return bytes of the file, for the system to send."""
        return {EXTENSION: Part(self._descriptor, start, stop)}

    def check(self) -> None:
        """Raise SourceChanged if somebody has written to it."""
        check_unchanged(self._descriptor, str(self._path), self.stamp)


@contextmanager
def opened(path: Path) -> Iterator[FileSource]:
    """Open a file to be sent."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    try:
        yield FileSource(descriptor, path)
    finally:
        os.close(descriptor)


class Line(NamedTuple):
    """How to send: bytes of a chunk, chunks at once, seconds without progress until it is given up."""

    chunk: int = 32 << 20
    parallel: int = 4
    patience: float = 600.0


class Sender:
    """Sends to one intake; for any number of threads.

    Parameters
    ----------
    client
        Knows the intake's address, and who asks.
    line
        How to send.
    """

    def __init__(self, client: httpx.Client, line: Line) -> None:
        self._client, self._line = client, line

    def send(
        self, source: Source, name: str, key: str = "", progress: Callable[[int], object] = lambda _bytes: None
    ) -> dict[str, Any]:
        """Send a file, or what is missing of it, and return the intake's last word on it.

        Parameters
        ----------
        source
            The file.
        name
            Path that it is to have there.
        key
            What finds its upload again after a restart: as long as its content is the same.
        progress
            Called with the bytes that have arrived since the last call.

        Raises
        ------
        UserError
            If it can't be done, or the file changes meanwhile.
        """
        announcement = {"name": name, "size": source.size, "chunk_size": self._line.chunk, "digest": "tree", "key": key}
        upload: dict[str, Any] = self._ask("POST", "/upload/prepare/", json=announcement)
        if upload["state"] == "stored":
            progress(source.size)
            return upload
        run = _Run(self, source, upload, progress)
        run.send_all(self._line.parallel)
        source.check()
        path = f"/upload/{upload['file_id']}/finalise"
        stored: dict[str, Any] = self._ask("POST", path, headers={"content-tree": tree(run.leaves)})
        return stored

    def _ask(self, method: str, path: str, **more: Any) -> Any:
        return self.patiently(lambda: _answered(self._client.request(method, path, **more))).json()

    def patiently(self, action: Callable[[], Any]) -> Any:
        """Do it, again and again while the line is cut."""
        return patiently(action, str(self._client.base_url), self._line.patience)

    def put(self, path: str, source: Source, span: tuple[int, int], digest: bytes) -> None:
        """Send a chunk, which `span` says where to find, until it has arrived."""
        headers = {
            "content-blake3": digest.hex(),
            "content-type": "application/octet-stream",
            "content-length": str(span[1] - span[0]),
        }

        def send() -> httpx.Response:
            source.check()
            return _unless_later(
                self._client.post(path, content=_Body(source, span), headers=headers, extensions=source.part(*span))
            )

        for _ in range(TRIES):
            answer = self.patiently(send)
            if answer.status_code not in (_DAMAGED, _BROKEN):
                checked(answer)
                return
            source.check()
            get_logger().debug("a chunk was refused; sending it again", reason=answer.text[:200])
        checked(answer)

    def held(self, upload: str) -> dict[int, bytes]:
        """Return the digests of the chunks that are there."""
        found: dict[str, str] = self._ask("GET", f"/upload/{upload}/chunks")
        return {int(number): bytes.fromhex(digest) for number, digest in found.items()}

    def known(self, upload: str, digests: dict[int, bytes]) -> list[int]:
        """Ask which chunks need not be sent."""
        chunks = {str(number): digest.hex() for number, digest in digests.items()}
        held: list[int] = self._ask("POST", f"/upload/{upload}/known", json={"chunks": chunks})["held"]
        return held


class _Body:
    """The bytes of a request, as often as they are wanted: once more after a login that had expired, for instance."""

    def __init__(self, source: Source, span: tuple[int, int]) -> None:
        self._source, self._span = source, span

    def __iter__(self) -> Iterator[bytes]:
        return self._source.blocks(*self._span)


class _Run:
    """One file on its way."""

    def __init__(
        self, sender: Sender, source: Source, upload: dict[str, Any], progress: Callable[[int], object]
    ) -> None:
        self._sender, self._source, self._progress = sender, source, progress
        self._id, self._chunk = upload["file_id"], upload["chunk_size"]
        count = upload["chunks"]
        self.leaves = [b""] * count
        for number, digest in (sender.held(self._id) if upload["received"] else {}).items():
            self.leaves[number] = digest
        progress(upload["received"])
        self._todo: Iterator[int] = iter([number for number in range(count) if not self.leaves[number]])
        self._lock, self._fault = threading.Lock(), False

    def send_all(self, parallel: int) -> None:
        """Send what is missing."""
        first = self._batch(1)
        if first and not self._fill_in(first):  # the first one is not known: others hardly are
            self._todo = chain(first, self._todo)
        elif first:
            while (batch := self._batch(ASKED)) and self._fill_in(batch):
                pass
        with ThreadPoolExecutor(parallel, thread_name_prefix="chunk") as pool:
            for worker in [pool.submit(self._work) for _ in range(parallel)]:
                worker.result()

    def _work(self) -> None:
        try:
            while not self._fault and (batch := self._batch(1)):
                self._send(batch[0])
        except BaseException:
            self._fault = True
            raise

    def _batch(self, count: int) -> list[int]:
        with self._lock:
            return [number for _, number in zip(range(count), self._todo, strict=False)]

    def _span(self, number: int) -> tuple[int, int]:
        start = number * self._chunk
        return start, min(start + self._chunk, self._source.size)

    def _hash(self, number: int) -> None:
        self.leaves[number] = leaf(self._source.blocks(*self._span(number)))

    def _send(self, number: int) -> None:
        """Send a chunk: it is read once for its digest, which goes before it, and again to be sent.

        The second time it comes from the system's memory; to keep it in ours would cost more.
        """
        start, stop = self._span(number)
        if not self.leaves[number]:
            self._hash(number)
        self._sender.put(f"/upload/{self._id}/chunk/{number}", self._source, (start, stop), self.leaves[number])
        self._progress(stop - start)

    def _fill_in(self, numbers: list[int]) -> bool:
        """Send those chunks of a batch that are not known there; return whether any was."""
        for number in numbers:
            self._hash(number)
        held = set(self._sender.known(self._id, {number: self.leaves[number] for number in numbers}))
        for number in numbers:
            if number in held:
                start, stop = self._span(number)
                self._progress(stop - start)
            elif len(numbers) > 1:
                self._send(number)
        return bool(held)


def _unless_later(answer: httpx.Response) -> httpx.Response:
    """Return an answer, unless it says that a later try may do."""
    if answer.status_code in _LATER or answer.status_code in (502, 503, 504):
        raise httpx.RemoteProtocolError(f"{answer.status_code} {answer.reason_phrase}")
    return answer


def _answered(answer: httpx.Response) -> httpx.Response:
    return checked(_unless_later(answer))
