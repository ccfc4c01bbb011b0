"""Uploads: a multipart body on its way to the disk, judged as it comes, never in memory whole.

The body goes through the parser block by block, in a thread, and its file's bytes straight to a file aside. What does
not end as it must (a client that stops, a body that is cut, a full disk) leaves nothing behind.
"""

import asyncio
import errno
import math
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from blake3 import blake3
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from delivery.placed.disk import BLOCK, Disk, NoRoom, identify, write_all
from delivery.placed.messages import File, check_name
from delivery.placed.rules import About, Judge, Place, Rule
from delivery.web.bodies import limit_body
from ministream.base.errors import UserError

LONGEST_BOUNDARY = 70
"""Bytes of a form's boundary (RFC 2046)."""

FIELD = b"file"
"""Name of the form's field."""


class Refused(UserError):  # noqa: N818
    """An upload that can't be taken: `status` is HTTP's."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Intake:
    """Takes uploads in.

    Parameters
    ----------
    disk
        Where they are written.
    rule
        Judges where they belong.
    tie
        Where they belong if the rule does not say.
    largest
        Bytes of the largest file; 0: no limit.
    stall
        Seconds of silence after which a client has stopped.
    at_once
        Uploads whose bodies are read at a time; others wait their turn.
    """

    def __init__(self, disk: Disk, rule: Rule, tie: Place, largest: int, stall: float, at_once: int) -> None:
        self._disk, self._rule, self._tie = disk, rule, tie
        self._largest, self._stall = largest, stall
        self._turn = asyncio.Semaphore(at_once)

    async def receive(self, request: Request, project: str, keep: Callable[[Path, File], None]) -> File:
        """Take the file in a request's body, and call `keep` (in a thread) with where it is and what it is.

        Raises
        ------
        Refused
            If it can't be taken.
        """
        boundary = _boundary(request)
        self._check_length(request)
        async with self._turn:
            aside = self._disk.new()
            try:
                with _Upload(aside, self._rule(), boundary, self._largest) as upload:
                    await self._read(request, upload)
                    return await run_in_threadpool(self._finish, upload, project, keep)
            except OSError as error:
                raise _full_or_not(error) from error
            finally:
                aside.unlink(missing_ok=True)

    def _check_length(self, request: Request) -> None:
        length = request.headers.get("content-length", "")
        if length.isdecimal():
            if self._largest and int(length) > self._largest + 10_000:  # less the form around the file
                raise Refused(413, f"the largest file that is taken here has {self._largest} bytes")
            try:
                self._disk.make_room(int(length))
            except NoRoom as error:
                raise Refused(507, str(error)) from error

    async def _read(self, request: Request, upload: "_Upload") -> None:
        """Pass the body to `upload` in blocks."""
        limit_body(request, math.inf)
        gathered, held = [], 0
        stream = request.stream()
        while True:
            try:
                some = await asyncio.wait_for(anext(stream, None), self._stall)
            except TimeoutError as error:
                text = f"nothing came for {self._stall:g} s; the upload is given up"
                raise Refused(408, text) from error
            except ClientDisconnect as error:
                raise Refused(400, "the client stopped in the middle; nothing is kept") from error
            if some is not None:
                gathered.append(some)
                held += len(some)
            if held >= BLOCK or (some is None and held):
                await run_in_threadpool(upload.feed, b"".join(gathered))
                gathered, held = [], 0
            if some is None:
                return

    def _finish(self, upload: "_Upload", project: str, keep: Callable[[Path, File], None]) -> File:
        name, size, digest = upload.finish()
        place = upload.judge.place(About(name, size, project, upload.aside)) or self._tie
        file = File(
            id=identify(name, project, digest), name=name, size=size, blake3=digest, project=project, place=place
        )
        keep(upload.aside, file)
        return file


class _Upload:
    """One body: finds the part that is the file, and writes, digests and judges its bytes."""

    def __init__(self, aside: Path, judge: Judge, boundary: bytes, largest: int) -> None:
        self.aside, self.judge = aside, judge
        self._largest, self._size, self._digest = largest, 0, blake3()
        self._name: str | None = None
        self._inside = self._ended = False
        self._header, self._value, self._headers = bytearray(), bytearray(), dict[bytes, bytes]()
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
                "on_end": self._on_end,
            },
        )

    def __enter__(self) -> Self:
        self._file = self.aside.open("xb", buffering=0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def feed(self, block: bytes) -> None:
        """Take the next bytes of the body."""
        try:
            self._parser.write(block)
        except FormParserError as error:
            raise Refused(400, f"this is no multipart form: {error}") from error

    def finish(self) -> tuple[str, int, str]:
        """Return the file's name, length in bytes and BLAKE3, once the body has ended."""
        if not self._ended:
            raise Refused(400, "the body ended before the form did; nothing is kept")
        if self._name is None:
            raise Refused(400, f"the form has no file in a field called {FIELD.decode()!r}")
        return self._name, self._size, self._digest.hexdigest()

    def _on_part_begin(self) -> None:
        self._headers.clear()

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[bytes(self._header).lower()] = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        self._inside = options.get(b"name") == FIELD and b"filename" in options
        if not self._inside:
            return
        if self._name is not None:
            raise Refused(400, "the form has several files; send each in a request of its own")
        try:
            self._name = check_name(options[b"filename"].decode())
        except UnicodeDecodeError as error:
            raise Refused(400, "the file's name is not UTF-8 text") from error
        except UserError as error:
            raise Refused(400, str(error)) from error

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if not self._inside:
            return
        with memoryview(data)[start:end] as block:
            self._size += len(block)
            if self._largest and self._size > self._largest:
                raise Refused(413, f"the largest file that is taken here has {self._largest} bytes")
            self._digest.update(block)
            self.judge.see(block)
            write_all(self._file, block)

    def _on_part_end(self) -> None:
        self._inside = False

    def _on_end(self) -> None:
        self._ended = True


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 0 < len(boundary) <= LONGEST_BOUNDARY:
        raise Refused(415, "send the file as multipart/form-data, in a field called 'file'")
    return boundary


def _full_or_not(error: OSError) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return Refused(507, "the disk is full; make room, or try again later")
    return error
