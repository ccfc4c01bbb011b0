"""The other door: tus 1.0 (https://tus.io/protocols/resumable-upload).

Of its extensions: creation, checksum, expiration, termination and, where the store can be read before the end,
concatenation.

What comes is cut into chunks like everything else. What came over a line that was cut is kept, unless it had a
checksum, which nothing can be compared with then. A concatenation copies: its parts may be of any length, and each of
its chunks gets a digest of its own.
"""

import asyncio
import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from email.utils import formatdate
from typing import Annotated, Any, NamedTuple
from weakref import WeakValueDictionary

from blake3 import blake3
from fastapi import APIRouter, Depends, FastAPI, Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from delivery.people.accounts import Person
from delivery.people.api import Door
from delivery.upload.appending import Append, Seats, Tails, offset
from delivery.upload.bodies import Room, blocks
from delivery.upload.digests import leaf
from delivery.upload.intake import TUS_DOORS, TUS_PART, TUS_WHOLE, Intake, Refused
from delivery.upload.ledger import State, Upload

VERSION = "1.0.0"
PATH = "/tus/"
CHUNK, MOST_COUNT = 4 << 20, 10_000
"""Bytes of a chunk unless the store or the number of chunks asks for more."""

ALGORITHMS: dict[str, Callable[[], Any]] = {"sha1": hashlib.sha1, "sha256": hashlib.sha256, "blake3": blake3}
"""Checksums that clients may send; SHA-1 is the one that every tus server must know."""

_OTHER_VERSION, _MISMATCH = 412, 460
_PAIR = re.compile(r"([^\s,]+)(?: ([A-Za-z0-9+/=]*))?")


EXPOSED = (
    "Location", "Upload-Offset", "Upload-Length", "Upload-Metadata", "Upload-Concat", "Upload-Expires",
    "Tus-Resumable", "Tus-Version", "Tus-Extension", "Tus-Max-Size", "Tus-Checksum-Algorithm",
)  # fmt: skip
"""Headers of answers that pages in a browser have to see."""


class TusHeader:
    """ASGI middleware: says the version in every answer of this door, and takes a request for what it says it is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""

        async def say(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["tus-resumable"] = VERSION
                if message["status"] == _OTHER_VERSION:
                    headers["tus-version"] = VERSION
            await send(message)

        if scope["type"] != "http" or not scope["path"].startswith(PATH.rstrip("/")):
            await self._app(scope, receive, send)
            return
        method = Headers(scope=scope).get("x-http-method-override", scope["method"])
        await self._app({**scope, "method": method.upper()}, receive, say)


class Checksum(NamedTuple):
    """A checksum that a client sent: the hasher, and what it must come to."""

    hasher: Any
    digest: bytes


class TusDoor:
    """The routes, and what they share.

    Parameters
    ----------
    intake, door, room, tails
        The service's parts.
    stall
        Seconds of silence after which a request is given up.
    """

    def __init__(self, intake: Intake, door: Door, room: Room, tails: Tails, stall: float) -> None:
        self._intake, self._door, self._room, self._tails, self._stall = intake, door, room, tails, stall
        self._seats = Seats()
        self._joining: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._largest = max(intake.terms.largest_chunk // 2, 1)  # one is filled while one is written
        extensions = ["creation", "checksum", "expiration", "termination"]
        self._extensions = [*extensions, "concatenation"] if intake.store.readable else extensions

    def add_to(self, app: FastAPI) -> None:
        """Add the routes."""
        routes = APIRouter(tags=["tus"], prefix=PATH.rstrip("/"))
        self._add_creation(routes)
        self._add_upload(routes)
        app.include_router(routes)
        app.add_middleware(TusHeader)

    def _add_creation(self, routes: APIRouter) -> None:
        @routes.options("/", status_code=204)
        @routes.options("/{name}", status_code=204)
        def options() -> Response:
            """Tell what this door speaks."""
            return Response(
                status_code=204,
                headers={
                    "tus-version": VERSION,
                    "tus-extension": ",".join(self._extensions),
                    "tus-checksum-algorithm": ",".join(ALGORITHMS),
                    "tus-max-size": str(self._largest * MOST_COUNT),
                },
            )

        @routes.post("/", status_code=201)
        async def create(request: Request, person: Annotated[Person, Depends(self._door.person)]) -> Response:
            """Begin an upload, a part of one, or put parts together."""
            _check_version(request)
            kind, _, parts = request.headers.get("upload-concat", "").partition(";")
            if kind == "final":
                upload = await self._join_once(person, request, parts.split())
            elif kind in ("", "partial"):
                upload = await run_in_threadpool(self._begin, person, request, TUS_PART if kind else TUS_WHOLE)
            else:
                raise Refused(400, "Upload-Concat is partial or final;URL URL …")
            return Response(status_code=201, headers={"location": f"{PATH}{upload.id}", **_expiry(upload)})

    def _add_upload(self, routes: APIRouter) -> None:
        @routes.head("/{name}")
        def head(request: Request, name: str, person: Annotated[Person, Depends(self._door.person)]) -> Response:
            """Tell how much has come."""
            _check_version(request)
            upload = self._find(person, name)
            headers = {
                "upload-offset": str(offset(self._intake, self._tails, upload)),
                "upload-length": str(upload.size),
                "cache-control": "no-store",
                **_expiry(upload),
                **{f"upload-{key}": value for key, value in upload.more.items() if value},
            }
            return Response(headers=headers)

        @routes.patch("/{name}", status_code=204)
        async def patch(request: Request, name: str, person: Annotated[Person, Depends(self._door.person)]) -> Response:
            """Take in what comes next."""
            _check_version(request)
            if request.headers.get("content-type") != "application/offset+octet-stream":
                raise Refused(415, "the Content-Type must be application/offset+octet-stream")
            checksum = _checksum(request.headers.get("upload-checksum", ""))
            upload = await run_in_threadpool(self._find, person, name)
            async with self._seats.take(name):
                reached = await self._append(request, upload, _count(request, "upload-offset"), checksum)
            if reached == upload.size and upload.door == TUS_WHOLE:
                upload = await run_in_threadpool(self._intake.finalise, upload, None)
            return Response(status_code=204, headers={"upload-offset": str(reached), **_expiry(upload)})

        @routes.delete("/{name}", status_code=204)
        def delete(request: Request, name: str, person: Annotated[Person, Depends(self._door.person)]) -> Response:
            """Give an upload up."""
            _check_version(request)
            upload = self._find(person, name)
            self._intake.cancel(upload, person.name)
            return Response(status_code=204)

    def _find(self, person: Person, name: str) -> Upload:
        upload = self._intake.find_open(person, name)
        if upload.door not in TUS_DOORS:
            raise Refused(404, "there is no such upload at this door")
        return upload

    def _begin(self, person: Person, request: Request, door: str, size: int | None = None, key: str = "") -> Upload:
        length = _count(request, "upload-length") if size is None else size
        given = request.headers.get("upload-metadata", "")
        more = {"metadata": given, "concat": request.headers.get("upload-concat", "")}
        name = _name(_metadata(given)) if door == TUS_WHOLE else "part"
        upload = self._intake.announce(person, name, length, self._chunk_size(length), key=key, door=door, more=more)
        if not length and door == TUS_WHOLE:
            upload = self._intake.finalise(upload, None)
        return upload

    def _chunk_size(self, size: int) -> int:
        """Return the size of an upload's chunks: a multiple of `CHUNK`, such that there are not too many."""
        wanted = max(CHUNK, self._intake.store.least, -(-size // MOST_COUNT))
        return max(min(-(-wanted // CHUNK) * CHUNK, self._largest), 1)

    async def _append(self, request: Request, upload: Upload, begins: int, checksum: Checksum | None) -> int:
        async with self._room.of(min(2 * upload.chunk_size, self._intake.terms.largest_chunk)):
            append = Append(self._intake, self._tails, upload, hold=checksum is not None)
            await append.begin()
            if begins != append.offset:
                raise Refused(409, f"{append.offset} bytes are here, and these begin at {begins}")
            try:
                await self._take_in(request, append, checksum)
            except BaseException:
                await (append.give_up() if checksum else append.commit())
                raise
            await append.commit()
            return append.offset

    async def _take_in(self, request: Request, append: Append, checksum: Checksum | None) -> None:
        async for block in blocks(request, self._stall):
            if checksum:
                await run_in_threadpool(checksum.hasher.update, block)
            await append.add(block)
        if checksum and checksum.hasher.digest() != checksum.digest:
            raise Refused(_MISMATCH, "this did not arrive as it was sent: its checksum is another one")

    async def _join_once(self, person: Person, request: Request, urls: list[str]) -> Upload:
        """Put parts together; whoever asks for the same again, or meanwhile, gets the same upload."""
        names = [url.rstrip("/").rpartition("/")[2] for url in urls]
        asked = " ".join([person.name, *names, request.headers.get("upload-metadata", "")])
        key = f"join {blake3(asked.encode()).hexdigest()}"
        async with self._joining.setdefault(key, asyncio.Lock()):
            return await run_in_threadpool(self._join, person, request, names, key)

    def _join(self, person: Person, request: Request, names: list[str], key: str) -> Upload:
        if not self._intake.store.readable:
            raise Refused(400, "parts can't be put together in this store")
        before = self._intake.ledger.current(person.name, key)
        if before and before.state == State.STORED:
            return self._intake.finish(before)
        parts = [self._find(person, name) for name in names]
        if not parts or any(part.door != TUS_PART for part in parts):
            raise Refused(400, "only uploads that were begun as partial ones can be put together")
        if any(offset(self._intake, self._tails, part) != part.size for part in parts):
            raise Refused(400, "a part has not come in whole yet")
        for part in parts:
            self._check(part)
        upload = self._begin(person, request, TUS_WHOLE, sum(part.size for part in parts), key)
        for number in range(upload.chunk_count):
            start, length = number * upload.chunk_size, upload.length(number)
            self._intake.keep(upload, number, length, self._span(parts, start, start + length))
        if upload.state == State.OPEN:
            upload = self._intake.finalise(upload, None)
        for part in {part.id: part for part in parts}.values():
            self._intake.cancel(part, person.name)
        return upload

    def _check(self, part: Upload) -> None:
        """Compare the chunks of a part with their digests, before copies of them get digests of their own."""
        for chunk in self._intake.ledger.chunks(part.id):
            start = chunk.number * part.chunk_size
            if leaf(self._intake.store.read(part.slot, start, start + chunk.length)) != chunk.blake3:
                raise Refused(500, f"chunk {chunk.number} of {part.id} is damaged")

    def _span(self, parts: list[Upload], start: int, stop: int) -> Iterator[bytes]:
        """Yield bytes of the whole that the parts are."""
        for part in parts:
            first, last = max(start, 0), min(stop, part.size)
            if first < last:
                yield from self._intake.store.read(part.slot, first, last)
            start, stop = start - part.size, stop - part.size


def _check_version(request: Request) -> None:
    if request.headers.get("tus-resumable") != VERSION:
        raise Refused(_OTHER_VERSION, f"this door speaks tus {VERSION}")


def _count(request: Request, header: str) -> int:
    given = request.headers.get(header, "")
    if not re.fullmatch(r"\d{1,15}", given, re.ASCII):
        raise Refused(400, f"{header} must be given, as a number of bytes")
    return int(given)


def _checksum(given: str) -> Checksum | None:
    if not given:
        return None
    algorithm, _, digest = given.partition(" ")
    if algorithm not in ALGORITHMS:
        raise Refused(400, f"checksums are taken by {', '.join(ALGORITHMS)}")
    try:
        return Checksum(ALGORITHMS[algorithm](), base64.b64decode(digest, validate=True))
    except binascii.Error as error:
        raise Refused(400, "the checksum is no base64") from error


def _metadata(given: str) -> Mapping[str, str]:
    """Return what a client says of its file: pairs of a key and base64, by commas."""
    values = {}
    for pair in filter(None, (part.strip() for part in given.split(","))):
        match = _PAIR.fullmatch(pair)
        try:
            key, value = match.groups() if match else ("", "*")
            values[key] = base64.b64decode(value or "", validate=True).decode()
        except (binascii.Error, UnicodeDecodeError) as error:
            raise Refused(400, "Upload-Metadata must be pairs of a key and base64, divided by commas") from error
    return values


def _name(metadata: Mapping[str, str]) -> str:
    return metadata.get("filename") or metadata.get("name") or "unnamed"


def _expiry(upload: Upload) -> dict[str, str]:
    return {"upload-expires": formatdate(upload.expires, usegmt=True)} if upload.state == State.OPEN else {}
