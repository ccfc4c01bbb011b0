"""The archive's own routes: announce, send chunks in any order, finalise.

Statuses: 201 made, or made before by the same request; 400 not as it must be, or too early; 401 no known token;
402 no licence; 404 no such upload; 406 a digest, or what is here already, says otherwise; 408 the sender fell silent;
409 stored already; 410 expired or cancelled; 429 quota; 503 send it again; 507 no room.
"""

import base64
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Query, Request
from pydantic import TypeAdapter
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from delivery.database import LARGEST
from delivery.people.accounts import Person
from delivery.people.api import Door
from delivery.upload.arriving import Arrival
from delivery.upload.bodies import Room, gather, pour
from delivery.upload.digests import Kind, Proof
from delivery.upload.intake import Intake, Refused
from delivery.upload.ledger import State, Upload
from delivery.upload.models import Announcement, Known, Status, status
from delivery.upload.taking import Taking
from delivery.web.ranges import RangeResponse

LATEST = 200
"""Uploads that a list has at most."""

OLD_COPIES = 4
"""Times that an old client's body is in memory: as it came, in one piece, as a text, and the text in it."""

MOST_LINES = 1000
"""Lines of the audit trail in an answer."""

_OLD_BODY: TypeAdapter[str | dict[str, Any]] = TypeAdapter(str | dict[str, Any])


class Digests:
    """Digests in a request's headers, in hexadecimal: of the chunk or of the whole."""

    def __init__(self, given: dict[Kind, str]) -> None:
        self._given = given

    @staticmethod
    async def of(
        content_blake3: Annotated[str, Header(max_length=64)] = "",
        content_sha256: Annotated[str, Header(max_length=64)] = "",
        content_tree: Annotated[str, Header(max_length=64, description="BLAKE3 of the chunks' BLAKE3s.")] = "",
    ) -> "Digests":
        """Find them: a dependency of routes."""
        return Digests({Kind.BLAKE3: content_blake3, Kind.SHA256: content_sha256, Kind.TREE: content_tree})

    def proof(self, *, old: bool, whole: bool) -> Proof:
        """Return what is to be compared; `old` clients call their HMAC SHA-256."""
        for kind, digest in self._given.items():
            if digest and (whole or kind != Kind.TREE):
                return Proof(Kind.HMAC if old and kind == Kind.SHA256 else kind, digest)
        raise Refused(400, "a digest is needed: the header content-blake3 or content-sha256")


class OwnDoor:
    """The routes, and what they share.

    Parameters
    ----------
    intake, door, room, taking
        The service's parts.
    stall
        Seconds of silence after which a chunk is given up.
    old
        Whether old clients are let in.
    """

    def __init__(self, intake: Intake, door: Door, room: Room, taking: Taking, stall: float, *, old: bool) -> None:
        self._intake, self._door, self._room, self._taking = intake, door, room, taking
        self._stall, self._old = stall, old

    def add_to(self, app: FastAPI) -> None:
        """Add the routes."""
        routes = APIRouter(tags=["upload"])
        self._add_beginning(routes)
        self._add_chunks(routes)
        self._add_end(routes)
        self._add_looks(routes)
        app.include_router(routes)

    def _status(self, upload: Upload) -> Status:
        return status(upload, self._intake.ledger.chunks(upload.id))

    def _add_beginning(self, routes: APIRouter) -> None:
        @routes.post("/upload/prepare/", status_code=201)
        def prepare(given: Announcement, person: Annotated[Person, Depends(self._door.person)]) -> Status:
            """Announce a file, or have one that lies here taken; the same key finds the same upload again."""
            if given.file_path is not None:
                return self._status(self._taking.begin(person, given.file_path, given.chunk_size))
            digest = given.digest or self._usual_digest(given)
            assert given.name is not None  # noqa: S101 - the model says so
            return self._status(
                self._intake.announce(person, given.name, given.size, given.chunk_size, digest=digest, key=given.key)
            )

    def _usual_digest(self, given: Announcement) -> Kind:
        """Return the tree, which outlives restarts; old clients, who tell no size, know their HMAC alone."""
        return Kind.HMAC if self._old and given.size is None and self._intake.store.readable else Kind.TREE

    def _add_chunks(self, routes: APIRouter) -> None:
        @routes.api_route("/upload/{name}/chunk/{number}", methods=["POST", "PUT"], status_code=201)
        async def chunk(
            request: Request,
            name: str,
            number: int,
            digests: Annotated[Digests, Depends(Digests.of)],
            person: Annotated[Person, Depends(self._door.person)],
        ) -> dict[str, Any]:
            """Send a chunk as the body, with its digest; again, and it is left as it is."""
            old = self._is_old(request)
            proof = digests.proof(old=old, whole=False)
            await (self._take_old if old else self._take)(request, person, name, number, proof)
            return {"file_id": name, "chunk": number}

        @routes.post("/upload/{name}/known")
        def known(
            name: str, given: Known, person: Annotated[Person, Depends(self._door.person)]
        ) -> dict[str, list[int]]:
            """Say which chunks need not be sent: their owner has stored them before, in whatever file."""
            upload = self._intake.find_fillable(person, name)
            digests = {number: bytes.fromhex(digest) for number, digest in given.chunks.items()}
            return {"held": self._intake.known(upload, digests)}

        @routes.get("/upload/{name}/chunks")
        def chunks(name: str, person: Annotated[Person, Depends(self._door.person)]) -> dict[int, str]:
            """Return the BLAKE3 of each chunk that is here, by number."""
            upload = self._intake.find(person, name)
            return {number: digest.hex() for number, _, digest in self._intake.ledger.chunks(upload.id)}

    def _is_old(self, request: Request) -> bool:
        if not request.headers.get("content-type", "").startswith("application/json"):
            return False
        if not self._old:
            raise Refused(400, "send the chunk's bytes as they are; JSON is for old clients, who are not let in here")
        return True

    async def _take(self, request: Request, person: Person, name: str, number: int, proof: Proof) -> None:
        given = request.headers.get("content-length")

        def begin() -> Arrival:
            upload = self._intake.find_fillable(person, name)
            return self._intake.arrive(upload, number, int(given) if given else upload.length(number), proof)

        arrival = await run_in_threadpool(begin)
        upload = arrival.upload
        try:
            await pour(request, upload.length(number), self._stall, arrival.add)
            await run_in_threadpool(self._noted, upload, lambda: self._intake.settle(arrival))
        finally:
            self._intake.leave(arrival)

    async def _take_old(self, request: Request, person: Person, name: str, number: int, proof: Proof) -> None:
        upload = await run_in_threadpool(self._intake.find_fillable, person, name)
        most = 4 * (-(-upload.length(number) // 3)) + 1024
        async with self._room.of(OLD_COPIES * most):
            body = await gather(request, most, self._stall)

            def keep() -> None:
                chunk = _from_json(b"".join(body.pieces))
                self._intake.keep(upload, number, len(chunk), [chunk], proof)

            await run_in_threadpool(self._noted, upload, keep)

    def _noted(self, upload: Upload, keep: Callable[[], None]) -> None:
        """Keep a chunk; if it is not what it should be, note that."""
        try:
            keep()
        except Refused as error:
            if error.status == 406:
                self._intake.ledger.note(upload.owner, "refused", upload.id, str(error))
            raise

    def _add_end(self, routes: APIRouter) -> None:
        @routes.post("/upload/{name}/finalise", status_code=201)
        async def finalise(
            request: Request,
            name: str,
            digests: Annotated[Digests, Depends(Digests.of)],
            person: Annotated[Person, Depends(self._door.person)],
        ) -> Status:
            """Prove the whole, whereupon it is stored; the form filename, fileSize, chunks may say again what it is."""
            form = await request.form(max_files=0, max_fields=10)
            upload = await run_in_threadpool(self._intake.find_open, person, name)
            proof = digests.proof(old=upload.digest == Kind.HMAC, whole=True)
            size, count = (_number(form.get(field), field) for field in ("fileSize", "chunks"))
            upload = await run_in_threadpool(self._intake.finalise, upload, proof, size=size, count=count)
            return await run_in_threadpool(self._status, upload)

        @routes.delete("/upload/{name}", status_code=204)
        def cancel(name: str, person: Annotated[Person, Depends(self._door.person)]) -> Response:
            """Give an open upload up."""
            self._intake.cancel(self._intake.find(person, name), person.name)
            return Response(status_code=204)

    def _add_looks(self, routes: APIRouter) -> None:
        @routes.get("/uploads")
        def uploads(person: Annotated[Person, Depends(self._door.person)]) -> list[Status]:
            """List the latest uploads: one's own, or everybody's to an operator."""
            owner = None if person.is_operator else person.name
            return [self._status(upload) for upload in self._intake.ledger.latest(owner, LATEST)]

        @routes.get("/upload/{name}")
        def look(name: str, person: Annotated[Person, Depends(self._door.person)]) -> Status:
            """Tell how an upload is, with what is missing."""
            return self._status(self._intake.find(person, name))

        @routes.get("/upload/{name}/content", response_class=Response)
        def content(name: str, person: Annotated[Person, Depends(self._door.person)]) -> Response:
            """Return what was stored, whole or in ranges."""
            upload = self._intake.find(person, name)
            if upload.state != State.STORED:
                raise HTTPException(409, f"this upload is {upload.state}, not stored")
            if not upload.finished:
                raise HTTPException(409, "this upload's file is not in its place yet: finalise it again")
            return RangeResponse(_Content(self._intake, upload), media_type="application/octet-stream")

        @routes.get("/audit", dependencies=[Depends(self._door.operator)])
        def audit(
            after: Annotated[int, Query(ge=0, le=LARGEST)] = 0, limit: Annotated[int, Query(ge=1, le=MOST_LINES)] = 100
        ) -> list[dict[str, Any]]:
            """Return the audit trail after a line's number, oldest first; for operators."""
            return self._intake.ledger.trail(after, limit)


class _Content:
    """What an upload has become, to be sent."""

    def __init__(self, intake: Intake, upload: Upload) -> None:
        self.length, self.etag = upload.size, f'"{upload.tree}"'
        self._intake, self._slot = intake, upload.slot

    def read(self, start: int, stop: int) -> Any:
        return self._intake.store.read(self._slot, start, stop)


def _from_json(body: bytes) -> bytes:
    """Return the bytes in an old client's body: base64 in a JSON string, or in an object's only string."""
    try:
        given = _OLD_BODY.validate_json(body)
        texts = [given] if isinstance(given, str) else [text for text in given.values() if isinstance(text, str)]
        (text,) = texts
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise Refused(400, "the body is no JSON with one string of base64") from error


def _number(given: Any, field: str) -> int | None:
    if given is None or given == "":
        return None
    if not (isinstance(given, str) and given.isascii() and given.isdigit() and len(given) < 18):
        raise Refused(400, f"{field} is no number")
    return int(given)
