"""Answers of known length and strong ETag, whole or in part (RFC 9110): Range, If-Range, If-None-Match, HEAD.

Blocks are read in threads, one ahead of the one that is being sent. What fails before the first of them is ready is an
ordinary error; what fails later breaks the connection off, and nobody takes the part for the whole.
"""

import asyncio
import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

READERS = 64
"""Threads that read: answers whose disks are slow don't hold up those whose are not."""

_RANGE = re.compile(r"bytes=\s*(\d{0,18})-(\d{0,18})\s*", re.ASCII)
_readers = ThreadPoolExecutor(READERS, thread_name_prefix="reader")


class Content(Protocol):
    """What can be sent: `etag` is a strong entity tag with its quotes, `length` is in bytes."""

    length: int
    etag: str

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes from `start` up to, without, `stop`; raise to break the connection off."""
        ...


class RangeResponse(Response):
    """Send `content`, or the range of it that was asked for; several ranges at once are answered with the whole.

    Parameters
    ----------
    content
        What to send.
    filename
        Name that the download is to have.
    media_type
        Its MIME type.
    headers
        More headers.
    on_sent
        Called with (start, stop) once the last byte was handed to a connection that still stood; not for HEAD.
    """

    def __init__(
        self,
        content: Content,
        *,
        filename: str = "",
        media_type: str = "application/zip",
        headers: Mapping[str, str] | None = None,
        on_sent: Callable[[int, int], None] | None = None,
    ) -> None:
        super().__init__(media_type=media_type, headers=headers)
        self._content, self._on_sent = content, on_sent
        self.headers["etag"] = content.etag
        self.headers["accept-ranges"] = "bytes"
        self.headers["cache-control"] = "private, no-transform"  # a proxy that compresses would break ranges
        self.headers["x-content-type-options"] = "nosniff"
        if filename:
            self.headers["content-disposition"] = f"attachment; filename*=UTF-8''{quote(filename, safe='')}"
            if re.fullmatch(r"[\w. -]+", filename, re.ASCII):
                self.headers["content-disposition"] = f'attachment; filename="{filename}"'

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request in `scope`."""
        asked = Headers(scope=scope)
        if self._is_current(asked):
            await Response(status_code=304, headers={"etag": self._content.etag})(scope, receive, send)
            return
        chosen = self._choose(asked)
        if chosen is None:
            detail = {"detail": f"the range lies beyond the {self._content.length} bytes that there are"}
            headers = {"content-range": f"bytes */{self._content.length}"}
            await JSONResponse(detail, 416, headers)(scope, receive, send)
            return
        start, stop = chosen
        self.headers["content-length"] = str(stop - start)
        if (start, stop) != (0, self._content.length):
            self.status_code = 206
            self.headers["content-range"] = f"bytes {start}-{stop - 1}/{self._content.length}"
        if scope["method"] == "HEAD":
            await self._begin(send)
            await send({"type": "http.response.body"})
        else:
            await self._send_range(start, stop, receive, send)

    def _is_current(self, asked: Headers) -> bool:
        tags = [tag.strip().removeprefix("W/") for tag in asked.get("if-none-match", "").split(",")]
        return self._content.etag in tags or tags == ["*"]

    def _choose(self, asked: Headers) -> tuple[int, int] | None:
        """Return where the answer begins and ends; None if the range lies beyond the content."""
        whole = 0, self._content.length
        match = _RANGE.fullmatch(asked.get("range", ""))
        if match is None or asked.get("if-range", self._content.etag) != self._content.etag:
            return whole
        first, last = match.groups()
        if not first:
            return _suffix(int(last), self._content.length) if last else whole
        if last and int(last) < int(first):
            return whole
        stop = min(int(last) + 1, self._content.length) if last else self._content.length
        return (int(first), stop) if int(first) < self._content.length else None

    async def _begin(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})

    async def _send_range(self, start: int, stop: int, receive: Receive, send: Send) -> None:
        blocks = _Ahead(self._content.read(start, stop))
        gone = asyncio.create_task(_disconnected(receive))
        try:
            block = await blocks.next()
            await self._begin(send)
            left = stop - start
            while block and not gone.done():
                left -= len(block)
                following = blocks.next() if left else None  # who has the last byte hangs up: find out before that
                await send({"type": "http.response.body", "body": block, "more_body": True})
                block = await following if following else b""
            await send({"type": "http.response.body", "more_body": True})  # waits until the last block has nearly left
            await asyncio.sleep(0)  # a lost connection has been told by then
            whole = not left and not gone.done()
            await send({"type": "http.response.body"})
        finally:
            gone.cancel()
            await blocks.close()
        if self._on_sent and whole:
            await asyncio.get_running_loop().run_in_executor(_readers, self._on_sent, start, stop)


class _Ahead:
    """Blocks of an iterator, each read in a thread from when it is asked for."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._reading: asyncio.Future[bytes] | None = None

    def next(self) -> "asyncio.Future[bytes]":
        """Begin to read the next block; it is empty after the last one."""
        self._reading = asyncio.get_running_loop().run_in_executor(_readers, next, self._blocks, b"")
        return self._reading

    async def close(self) -> None:
        """Give up what is open, once a read that is under way has ended."""
        if self._reading:
            with contextlib.suppress(Exception):
                await asyncio.shield(self._reading)
        if close := getattr(self._blocks, "close", None):
            await asyncio.get_running_loop().run_in_executor(_readers, close)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _suffix(count: int, length: int) -> tuple[int, int] | None:
    return (max(length - count, 0), length) if count and length else None
