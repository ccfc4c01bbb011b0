"""Bodies of requests: those of which much is held in memory have a share of it, and none takes for ever to come."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from delivery.upload.intake import Refused
from delivery.upload.stores import Pieces
from delivery.web.bodies import SLOWEST, limit_body
from delivery.web.socket_body import rest_of

SMALL = 16 << 10
"""Bytes of a piece that is kept as it came."""

BATCH = 128 << 10
"""Bytes that are handed on together."""


class Room:
    """Memory for bodies that are held until they can be written: whoever finds none left waits, and the line with it.

    Parameters
    ----------
    size
        Bytes.
    patience
        Seconds that somebody waits at most.
    """

    def __init__(self, size: int, patience: float) -> None:
        self._size, self._free, self._patience, self._changed = size, size, patience, asyncio.Condition()

    @asynccontextmanager
    async def of(self, count: int) -> AsyncIterator[None]:
        """Have so many bytes until the end of the block.

        Raises
        ------
        Refused
            400 if there are never so many, 503 if others have held them for too long.
        """
        if count > self._size:
            raise Refused(400, f"this would take {count} bytes of memory, of {self._size}: send smaller chunks")
        try:
            async with asyncio.timeout(self._patience), self._changed:
                await self._changed.wait_for(lambda: self._free >= count)
                self._free -= count
        except TimeoutError as error:
            raise Refused(503, "too many others are sending now: try again") from error
        try:
            yield
        finally:
            async with self._changed:
                self._free += count
                self._changed.notify_all()


class Gathered:
    """Pieces of a body; small ones are put together, so that they take no more room than they have bytes."""

    def __init__(self) -> None:
        self.pieces: list[bytes | bytearray | memoryview] = []
        self.length = 0

    def add(self, block: bytes | memoryview) -> None:
        """Take in the next piece."""
        self.length += len(block)
        last = self.pieces[-1] if self.pieces else b""
        if len(block) >= SMALL:
            self.pieces.append(block)
        elif isinstance(last, bytearray) and len(last) < SMALL:
            last += block
        else:
            self.pieces.append(bytearray(block))


async def gather(request: Request, most: int, stall: float) -> Gathered:
    """Return a request's body.

    Parameters
    ----------
    request
        Whose.
    most
        Bytes that it may have.
    stall
        Seconds of silence after which it is given up.

    Raises
    ------
    Refused
        400 if there are more bytes, or the line is cut; 408 after the silence.
    """
    body = Gathered()
    async for block in blocks(request, stall, most):
        body.add(block)
    return body


async def pour(request: Request, most: int, stall: float, into: Callable[[Pieces], None]) -> None:
    """Hand a request's body over to `into` as it comes, in threads; raises as `gather` does, and what `into` raises.

    What `into` is given may be overwritten after the call.
    """
    if rest := rest_of(request):
        with rest, _told(stall):
            await rest.pour(lambda piece: into([piece]), stall)
        return
    batch = Gathered()
    async for block in blocks(request, stall, most):
        batch.add(block)
        if batch.length >= BATCH:
            await run_in_threadpool(into, batch.pieces)
            batch = Gathered()
    await run_in_threadpool(into, batch.pieces)


async def blocks(request: Request, stall: float, most: float = math.inf) -> AsyncIterator[bytes]:
    """Yield a request's body as it comes; raises as `gather` does, and 408 as well if it comes too slowly."""
    limit_body(request, math.inf)
    clock, length, waited = asyncio.get_running_loop().time, 0, 0.0
    with _told(stall):
        async with asyncio.timeout(stall) as limit:
            since = clock()
            async for block in request.stream():
                limit.reschedule(None)
                waited += clock() - since
                length += len(block)
                if length > most:
                    raise Refused(400, f"there are more than the {most} bytes that this may have")
                yield block
                since = clock()
                limit.reschedule(since + min(stall, stall + length / SLOWEST - waited))


@contextmanager
def _told(stall: float) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise Refused(408, f"nothing came for {stall:g} s, or too little for longer") from error
    except ClientDisconnect as error:
        raise Refused(400, "the line was cut") from error
