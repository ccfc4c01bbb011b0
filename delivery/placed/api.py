"""The routes of a site: for people and programs, and for the other site."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from itertools import islice
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from fastapi.routing import APIRouter
from pydantic import Field
from sqlalchemy.exc import DBAPIError
from starlette.concurrency import run_in_threadpool

from delivery.database import LARGEST
from delivery.files.spans import read_span
from delivery.placed.disk import BLOCK, NoRoom, is_whole
from delivery.placed.intake import FIELD, Intake, Refused
from delivery.placed.keeping import Keeper
from delivery.placed.messages import LONGEST, File, Poison
from delivery.placed.mover import Mover
from delivery.placed.peer import Copy
from delivery.placed.register import Entry, State
from delivery.placed.rules import Place, Site
from delivery.settings import NAME
from delivery.web.ranges import RangeResponse
from ministream.base.errors import UserError
from ministream.base.log import get_logger

OPERATORS = frozenset({"operator", *Site})
"""Whose tokens open the routes between the sites: the sites' own, and those who check and repair."""

RETRY = {"Retry-After": "10"}

UNBUFFERED = {"X-Accel-Buffering": "no"}

SIGN = 2.0
"""Seconds between two signs of life while a file is read: whoever asked would hang up after a minute of silence."""

LINES = 100
"""Lines of a list that are sent at a time."""

Number = Annotated[int, Field(ge=0, le=LARGEST)]
Project = Annotated[str, Query(pattern=rf"^(|{NAME.pattern})$")]

_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [FIELD.decode()],
                    "properties": {FIELD.decode(): {"type": "string", "format": "binary"}},
                }
            }
        },
    }
}


class Bytes:
    """The bytes of a file, as `RangeResponse` sends them; its digest is its entity tag."""

    def __init__(self, keeper: Keeper, file: File) -> None:
        self.length, self.etag = file.size, f'"{file.blake3}"'
        self._keeper, self._file = keeper, file

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes from `start` up to, without, `stop`."""
        path = self._keeper.disk.find(self._file.id)
        if path is None:
            raise UserError(f"the bytes of {self._file.id} are not here any more; ask again")
        try:
            yield from read_span(path, start, stop, BLOCK)
        except EOFError as error:
            short = f"the bytes of {self._file.id} are fewer than they were; `delivery placed check`"
            raise UserError(short) from error


class Api:
    """The routes.

    Parameters
    ----------
    keeper, intake, mover
        What it keeps, how files come in, and what moves them.
    client
        Dependency that lets people and programs in.
    bearer
        Dependency that gives the name of who bears a token.
    elsewhere
        URL of the other site, as clients reach it.
    """

    def __init__(self, keeper: Keeper, intake: Intake, mover: Mover, client: Any, bearer: Any, elsewhere: str) -> None:
        self._keeper, self._intake, self._mover = keeper, intake, mover
        self._client, self._bearer, self._elsewhere = client, bearer, elsewhere

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to a site's application."""
        app.add_exception_handler(Refused, _tell_refused)
        app.add_exception_handler(NoRoom, _tell_no_room)
        app.add_exception_handler(DBAPIError, _tell_no_records)
        app.include_router(self._public())
        app.include_router(self._between())

    def _public(self) -> APIRouter:
        routes = APIRouter(tags=["data"], dependencies=[self._client])
        routes.add_api_route("/data/upload", self.upload, methods=["POST"], status_code=201, openapi_extra=_FORM)
        routes.add_api_route("/data", self.listing, methods=["GET"])
        routes.add_api_route("/data/{id_}", self.record, methods=["GET"])
        routes.add_api_route("/data/{id_}/file", self.content, methods=["GET"], response_class=Response)
        routes.add_api_route("/data/{id_}/file", self.content, methods=["HEAD"], include_in_schema=False)
        return routes

    def _between(self) -> APIRouter:
        def operator(name: str = self._bearer) -> None:
            if name not in OPERATORS:
                raise HTTPException(403, f"this route is for the sites and for operators, not for {name!r}")

        routes = APIRouter(tags=["between the sites"], dependencies=[Depends(operator)])
        routes.add_api_route("/copies", self.copies, methods=["GET"], response_class=StreamingResponse)
        routes.add_api_route("/copies/{id_}", self.copy, methods=["GET"])
        routes.add_api_route("/copies/{id_}/bytes", self.content_here, methods=["GET"], response_class=Response)
        routes.add_api_route("/copies/{id_}/offer", self.offer_again, methods=["POST"])
        routes.add_api_route("/copies/{id_}/fetch", self.fetch_again, methods=["POST"])
        routes.add_api_route("/messages", self.message, methods=["POST"])
        routes.add_api_route("/set-aside", self.aside, methods=["GET"])
        routes.add_api_route("/set-aside/{number}/replay", self.replay, methods=["POST"])
        routes.add_api_route("/set-aside/{number}", self.discard, methods=["DELETE"], status_code=204)
        return routes

    # For people and programs

    async def upload(self, request: Request, project: Project = "") -> Any:
        """Take a file, and have it placed where it belongs.

        The same name and content, sent again to whichever site, is the same file: what was cut can be sent again.
        """
        file = await self._intake.receive(request, project, self._keeper.keep)
        self._mover.wake()
        where = "both sites" if file.place is Place.BOTH else f"site {file.place}"
        return {"message": f"{file.name} was received; it belongs at {where}", "id": file.id, "place": file.place}

    def listing(self) -> StreamingResponse:
        """List the files that are placed here: `{"list_metadata": {id: {"name", "size"}}, "total_size": bytes}`."""
        return StreamingResponse(_gathered(self._listed()), media_type="application/json")

    def record(self, id_: str) -> Any:
        """Return what this site has on record of a file."""
        entry = self._entry(id_)
        return {**entry.file.model_dump(), **entry._asdict(), "file": f"/data/{entry.file.id}/file"}

    def content(self, id_: str) -> Response:
        """Return a file's bytes, from here or from the other site: Range, If-Range, ETag."""
        entry = self._entry(id_)
        if entry.state in (State.SENT, State.ARRIVING):
            return RedirectResponse(f"{self._elsewhere}/data/{entry.file.id}/file", 307)
        return self._bytes(entry)

    # For the other site

    def copies(self, *, read: bool = False) -> StreamingResponse:
        """List all that is on record or on the disk, a line of JSON each, in order of the ids."""
        lines = _gathered(self._copies(read), 1 if read else LINES)
        return StreamingResponse(_with_signs(lines), media_type="application/x-ndjson", headers=UNBUFFERED)

    def copy(self, id_: str, *, read: bool = False) -> StreamingResponse:
        """Return what is on record of a file, and whether its bytes are there; with `read`, whether they are good."""
        looks = (self._copy(entry, read=read).model_dump_json() for entry in [self._entry(id_)])
        return StreamingResponse(_with_signs(looks), media_type="application/json", headers=UNBUFFERED)

    def content_here(self, id_: str) -> Response:
        """Return the bytes of a file that lies here."""
        entry = self._entry(id_)
        if entry.state not in (State.HERE, State.LEAVING):
            raise HTTPException(404, "the bytes of this file are not here")
        return self._bytes(entry)

    def offer_again(self, id_: str) -> None:
        """Offer a file to the other site anew."""
        self._keeper.register.offer_again(self._entry(id_).file.id)
        self._mover.wake()

    def fetch_again(self, id_: str, file: File) -> None:
        """Fetch a file from the other site, in place of what lies here or is missing."""
        if file.id != id_ or not file.place.includes(self._keeper.register.site):
            raise HTTPException(400, "this file does not belong here")
        self._keeper.register.fetch_again(file)
        self._mover.wake()

    async def message(self, request: Request) -> None:
        """Take a message from the other site, where there is no broker."""
        body = b""
        async for some in request.stream():
            body += some
            if len(body) > LONGEST:
                break
        await self._mover.hear(body)

    def aside(self, after: Number = 0) -> Any:
        """List messages that could not be meant, 500 at most, from a number on."""
        return self._keeper.register.aside(after)

    def replay(self, number: Number) -> None:
        """Act on a message again that was set aside, and then forget it; it stays if it still can't be meant."""
        body = self._keeper.register.find_aside(number)
        if body is None:
            raise _no_message(number)
        try:
            self._mover.act(body)
        except Poison as error:
            raise HTTPException(409, str(error)) from error
        self._keeper.register.forget_aside(number)

    def discard(self, number: Number) -> None:
        """Forget a message that was set aside."""
        if not self._keeper.register.forget_aside(number):
            raise _no_message(number)

    def _entry(self, id_: str) -> Entry:
        entry = self._keeper.register.find(id_)
        if entry is None:
            raise HTTPException(404, "no file of this id is known here")
        return entry

    def _bytes(self, entry: Entry) -> Response:
        if self._keeper.disk.find(entry.file.id) is None:
            get_logger().error("bytes are missing: delivery placed repair", id=entry.file.id, name=entry.file.name)
            raise HTTPException(503, "the bytes of this file are missing here; it can be repaired", RETRY)
        return RangeResponse(
            Bytes(self._keeper, entry.file), filename=entry.file.name, media_type="application/octet-stream"
        )

    def _listed(self) -> Iterator[str]:
        total, before = 0, ""
        yield '{"list_metadata": {'
        for entry in self._keeper.register.entries(State.HERE):
            total += entry.file.size
            known = {"name": entry.file.name, "size": entry.file.size}
            yield f'{before}"{entry.file.id}": {json.dumps(known)}'
            before = ", "
        yield f'}}, "total_size": {total}}}'

    def _copies(self, read: bool) -> Iterator[str]:
        on_disk = self._keeper.disk.ids()
        next_ = next(on_disk, None)
        for entry in self._keeper.register.entries():
            while next_ is not None and next_ < entry.file.id:
                yield self._line(Copy(id=next_))
                next_ = next(on_disk, None)
            if next_ == entry.file.id:
                next_ = next(on_disk, None)
            yield self._line(self._copy(entry, read=read))
        while next_ is not None:
            yield self._line(Copy(id=next_))
            next_ = next(on_disk, None)

    def _copy(self, entry: Entry, *, read: bool) -> Copy:
        return Copy(id=entry.file.id, file=entry.file, state=entry.state, bytes=self._look(entry, read))

    def _look(self, entry: Entry, read: bool) -> str:
        path = self._keeper.disk.find(entry.file.id)
        try:
            if path is None:
                return "missing"
            if not read:
                return "unread" if path.stat().st_size == entry.file.size else "damaged"
            return "good" if is_whole(path, entry.file.size, entry.file.blake3) else "damaged"
        except FileNotFoundError:  # it has just left
            return "missing"

    def _line(self, copy: Copy) -> str:
        return copy.model_dump_json() + "\n"


def _no_message(number: int) -> HTTPException:
    return HTTPException(404, f"no message of the number {number} is set aside")


def _gathered(lines: Iterator[str], count: int = LINES) -> Iterator[str]:
    """Join `count` lines: each that is yielded costs a change of threads."""
    while some := list(islice(lines, count)):
        yield "".join(some)


async def _with_signs(parts: Iterator[str]) -> AsyncIterator[str]:
    """Yield the parts of an answer in JSON, before each a blank for every `SIGN` seconds that it takes to make."""
    while True:
        making = asyncio.create_task(run_in_threadpool(next, parts, ""))
        while not (await asyncio.wait({making}, timeout=SIGN))[0]:
            yield " "
        if not (part := making.result()):
            return
        yield part


async def _tell_refused(_request: Request, error: Exception) -> JSONResponse:
    get_logger().warning("not taken", reason=str(error))
    status = error.status if isinstance(error, Refused) else 400
    return JSONResponse({"detail": str(error)}, status, RETRY if status == 507 else None)


async def _tell_no_room(_request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 507, RETRY)


async def _tell_no_records(_request: Request, error: Exception) -> JSONResponse:
    """Answer where the database can't be written to: nothing is lost, and another try may do."""
    get_logger().error("cannot keep records: is the disk full?", reason=str(getattr(error, "orig", error)))
    return JSONResponse({"detail": "this site cannot keep its records now; try again later"}, 503, RETRY)
