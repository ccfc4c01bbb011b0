"""Bytes that come in order, of no particular length, cut into an upload's chunks.

The beginning of a chunk that is not complete yet lies in a file of its own, named by the chunk: once the chunk counts,
that file is nobody's, so that no kill can leave the two in disagreement.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.concurrency import run_in_threadpool

from delivery.upload.bodies import Gathered
from delivery.upload.digests import leaf
from delivery.upload.intake import Intake, Refused
from delivery.upload.ledger import Chunk, Ended, State, Upload
from delivery.upload.stores import Pieces
from ministream.base.files import explained


class Tails:
    """The beginnings of chunks, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def length(self, upload: str, number: int) -> int:
        """Return how much there is of a chunk."""
        path = self._path(upload, number)
        return path.stat().st_size if path.exists() else 0

    def load(self, upload: str, number: int) -> bytes:
        """Return what there is of a chunk."""
        path = self._path(upload, number)
        return path.read_bytes() if path.exists() else b""

    def save(self, upload: str, number: int, pieces: Pieces) -> None:
        """Keep what there is of a chunk, in place of less of it."""
        path = self._path(upload, number)
        aside = path.with_suffix(".new")
        with explained(path):
            with aside.open("wb") as file:
                file.writelines(pieces)
            aside.replace(path)

    def forget(self, upload: str) -> None:
        """Delete all that there is of an upload that has ended."""
        for path in self._folder.glob(f"{upload}-*"):
            path.unlink(missing_ok=True)

    def drop(self, upload: str, before: int) -> None:
        """Delete what there was of chunks up to a number, without it."""
        for path in self._folder.glob(f"{upload}-*"):
            if path.suffix != ".new" and int(path.name.rpartition("-")[2]) < before:
                path.unlink(missing_ok=True)

    def _path(self, upload: str, number: int) -> Path:
        return self._folder / f"{upload}-{number}"


class Seats:
    """Who appends to which upload: one at a time. Who comes later has the line that works, so the other one goes."""

    def __init__(self) -> None:
        self._taken: dict[str, tuple[asyncio.Timeout, asyncio.Event]] = {}

    @asynccontextmanager
    async def take(self, upload: str) -> AsyncIterator[None]:
        """Be the one until the end of the block, or until somebody else is: that ends it with 409."""
        while other := self._taken.get(upload):
            limit, gone = other
            if not limit.expired() and limit.when() is None:
                limit.reschedule(asyncio.get_running_loop().time())
            await gone.wait()
        gone = asyncio.Event()
        try:
            async with asyncio.timeout(None) as limit:
                self._taken[upload] = limit, gone
                yield
        except TimeoutError as error:
            raise Refused(409, "another request goes on with this upload") from error
        finally:
            self._taken.pop(upload, None)
            gone.set()


class Append:
    """What one request adds to the end of an upload.

    Parameters
    ----------
    intake, tails
        The service's parts.
    upload
        To which it is added.
    hold
        Whether nothing counts before `commit` is called: its digest comes last.
    """

    def __init__(self, intake: Intake, tails: Tails, upload: Upload, *, hold: bool) -> None:
        self._intake, self._tails, self._upload, self._hold = intake, tails, upload, hold
        self._held: list[Chunk] = []
        self._writing: asyncio.Future[None] | None = None
        self._number = self._length = self.offset = 0
        self._chunk = Gathered()

    async def begin(self) -> None:
        """Find the end of the upload."""
        self._number, tail = await run_in_threadpool(self._look)
        self._begin_chunk()
        self._chunk.add(tail)
        self.offset = self._number * self._upload.chunk_size + len(tail)

    async def add(self, block: bytes) -> None:
        """Take in more bytes.

        Raises
        ------
        Refused
            413 if they are more than was announced.
        """
        if self.offset + len(block) > self._upload.size:
            raise Refused(413, f"these are more than the {self._upload.size} bytes that were announced")
        self.offset += len(block)
        rest = memoryview(block)
        while rest:
            part = rest[: self._length - self._chunk.length]
            self._chunk.add(part)
            rest = rest[len(part) :]
            if self._chunk.length == self._length:
                await self._write()

    async def commit(self) -> None:
        """Let all that came count, that of a chunk's beginning too."""
        await self._written()
        await run_in_threadpool(self._settle)

    async def give_up(self) -> None:
        """Let nothing count that has not yet."""
        if self._writing:
            await asyncio.wait({self._writing})

    async def _write(self) -> None:
        await self._written()
        self._writing = asyncio.ensure_future(run_in_threadpool(self._put, self._number, self._chunk))
        self._number += 1
        self._begin_chunk()

    async def _written(self) -> None:
        if self._writing:
            await asyncio.shield(self._writing)

    def _begin_chunk(self) -> None:
        self._chunk, self._length = Gathered(), self._upload.length(self._number)

    def _put(self, number: int, content: Gathered) -> None:
        chunk = Chunk(number, content.length, leaf(content.pieces))
        self._intake.write(self._upload, chunk, content.pieces, count=not self._hold)
        if self._hold:
            self._held.append(chunk)

    def _settle(self) -> None:
        if self._chunk.length:
            self._tails.save(self._upload.id, self._number, self._chunk.pieces)
        try:
            self._intake.ledger.enter_all(self._upload.id, self._held)
        except Ended as error:
            raise Refused(410, "this upload has ended") from error
        self._tails.drop(self._upload.id, self._number)

    def _look(self) -> tuple[int, bytes]:
        number = whole_chunks(self._intake, self._upload)
        return number, self._tails.load(self._upload.id, number)


def whole_chunks(intake: Intake, upload: Upload) -> int:
    """Return how many chunks are there of an upload that comes in order."""
    return intake.ledger.chunk_count(upload.id)


def offset(intake: Intake, tails: Tails, upload: Upload) -> int:
    """Return how many bytes are there of an upload that comes in order."""
    if upload.state == State.STORED:
        return upload.size
    number = whole_chunks(intake, upload)
    return min(number * upload.chunk_size + tails.length(upload.id, number), upload.size)
