"""Bodies of requests that threads read from the socket itself.

uvicorn's event loop copies every block of a body several times, and one core does all of that. A route that takes in
large bodies may have the rest of one handed over: the loop leaves that line alone, and threads read it into a buffer
that stays in the processor's cache while `into` does with it what it likes; system calls and digests of several lines
then run side by side. A line on which nothing comes costs no thread: the loop waits for it. What a route leaves of a
body is passed over, so that the connection can go on.

Leans on what `HttpToolsProtocol` keeps (`cycle`, `flow`, `parser`), which uvicorn does not document: the tests of this
module hold it to that.
"""

import asyncio
import os
import select
import socket
import time
from collections.abc import Callable
from functools import partial

import httptools
from anyio import CapacityLimiter, to_thread
from starlette.requests import ClientDisconnect, Request
from uvicorn._types import HTTPScope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ministream.base.owner import Owner

BUFFER = 512 << 10
"""Bytes that are read before they are handed on: they are still in the cache when they are hashed and written."""

READERS = max(4, os.cpu_count() or 1)
"""Threads that read at the same time; other lines wait for their turn."""

TURN, LINGER = 0.25, 0.005
"""Seconds that a thread stays with a line on which bytes come, and that it waits for more of them in all that time."""

_EXTENSION, _HAND_OVER = "delivery.body", "hand_over"
_threads, _buffers = CapacityLimiter(READERS), list[memoryview]()


class Rest(Owner):
    """What is still to come of a body, which nobody else reads until it is closed.

    Parameters
    ----------
    came
        The first bytes of it, which the loop has read already.
    line
        A socket of our own, for the same connection.
    left
        Bytes that are to come after those.
    end
        Called with the number of bytes that nobody has read, in the end.
    """

    def __init__(self, came: bytearray, line: socket.socket, left: int, end: Callable[[int], None]) -> None:
        self._came, self._line, self._left, self._end = came, line, left, end

    async def pour(self, into: Callable[[memoryview], None], stall: float) -> None:
        """Hand all of it to `into`, which threads call, one at a time; what it is given is overwritten after the call.

        Raises
        ------
        TimeoutError
            If nothing comes for `stall` seconds.
        ClientDisconnect
            If the line is cut.
        """
        await to_thread.run_sync(self._read, into, limiter=_threads)
        while self._left:
            await self._wait(stall)
            await to_thread.run_sync(self._read, into, limiter=_threads)

    async def _wait(self, stall: float) -> None:
        loop, readable = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._line, readable.set)
        try:
            async with asyncio.timeout(stall):
                await readable.wait()
        finally:
            loop.remove_reader(self._line)

    def _read(self, into: Callable[[memoryview], None]) -> None:
        if self._came:
            came, self._came = memoryview(self._came), bytearray()
            into(came)
        buffer = _buffers.pop() if _buffers else memoryview(bytearray(BUFFER))
        try:
            self._read_by(buffer, into)
        finally:
            _buffers.append(buffer)

    def _read_by(self, buffer: memoryview, into: Callable[[memoryview], None]) -> None:
        poll = select.poll()
        poll.register(self._line, select.POLLIN)
        until, linger, filled = time.monotonic() + TURN, LINGER, 0
        while self._left and linger > 0.0:
            try:
                count = self._line.recv_into(buffer[filled : filled + self._left])
            except BlockingIOError:
                began = time.monotonic()
                poll.poll(linger * 1e3)
                linger -= time.monotonic() - began
                continue
            except ConnectionError:
                count = 0
            if not count:
                raise ClientDisconnect
            self._left, filled = self._left - count, filled + count
            if filled == len(buffer):
                into(buffer)
                filled = 0
                if time.monotonic() > until:
                    return
        if filled:
            into(buffer[:filled])

    def close(self) -> None:
        """Leave the line to the loop, which passes over what is left."""
        if self._line.fileno() >= 0:
            self._line.close()
            self._end(self._left)


class SocketBodyProtocol(HttpToolsProtocol):
    """uvicorn's protocol for requests whose bodies may be handed over."""

    _unread = 0

    def on_headers_complete(self) -> None:
        """Begin a request, which finds the way to its body in its scope."""
        self.scope["extensions"] = {_EXTENSION: {_HAND_OVER: partial(self._hand_over, self.scope)}}
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Pass over what was left of a body; parse the rest."""
        if self._unread:
            self._unset_keepalive_if_required()
            passed = min(self._unread, len(data))
            self._unread, data = self._unread - passed, data[passed:]
        if data:
            super().data_received(data)

    def _hand_over(self, scope: HTTPScope, length: int) -> Rest | None:
        """Give away a request's body, of which nothing was read yet; None where that can't be done."""
        cycle = self.cycle
        if cycle.scope is not scope or not cycle.more_body or self.scheme != "http" or self.transport.is_closing():
            return None
        if cycle.waiting_for_100_continue:
            cycle.waiting_for_100_continue = False
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.flow.pause_reading()
        line = socket.socket(fileno=os.dup(self.transport.get_extra_info("socket").fileno()))
        line.setblocking(False)
        came, cycle.body, cycle.more_body = cycle.body, bytearray(), False
        self.parser = httptools.HttpRequestParser(self)  # what it sees next is the next request
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return Rest(came, line, length - len(came), self._pass_over)

    def _pass_over(self, unread: int) -> None:
        self._unread = unread


def rest_of(request: Request) -> Rest | None:
    """Take over a request's body, of which nothing was read yet.

    None if its length is not known, if it is here already, or where the web server or the line does not lend itself to
    that (TLS): then it has to be read as usual.
    """
    extension, length = request.scope.get("extensions", {}).get(_EXTENSION), request.headers.get("content-length")
    rest: Rest | None = extension[_HAND_OVER](int(length)) if extension and length else None
    return rest
