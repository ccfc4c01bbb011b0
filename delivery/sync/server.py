"""`delivery server`: answers brokers with a zip of what is new, and archives what they have.

Statuses: 200 and 206 the zip; 401 no known token, 403 not for this project; 404 nothing new, or no such project or
batch; 406 an extension that is not offered; 409 an acknowledgement of something else; 503 (with Retry-After) what may
pass: a full disk, files that change all the time.
"""

import asyncio
import re
import time
from collections.abc import Callable, Collection
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from delivery.archive.stream import Archive
from delivery.database import open_database
from delivery.files.catalogue import Catalogue
from delivery.files.version import SourceChanged
from delivery.people.tokens import TokenFile
from delivery.settings import listed
from delivery.sync.batches import Batches, Offer, UnknownBatch, WrongDigests
from delivery.sync.ledger import Ledger, Mirror
from delivery.sync.metrics import Meter, Mirrors
from delivery.sync.projects import Projects, UnknownProject
from delivery.sync.protocol import ACKNOWLEDGES, BATCH, Acknowledgement
from delivery.sync.settings import ServerSettings
from delivery.web.app import LATER, bearer, create_app, serve
from delivery.web.bodies import documented, large_json
from delivery.web.ranges import RangeResponse
from ministream.base.errors import UserError
from ministream.base.log import get_logger

LOOK = 1.0
"""Seconds between two looks for a broker that waits."""

LONGEST_WAIT = 60
"""Seconds that a request is held: proxies on the way give up after about as long."""

_STATUS: dict[type[UserError], int] = {UnknownProject: 404, UnknownBatch: 404, WrongDigests: 409, SourceChanged: 503}

Right = Callable[[str], Collection[str]]


def main(settings: ServerSettings) -> int:
    """Serve until SIGINT or SIGTERM."""
    elsewhere = {settings.project: settings.receiver_output} if settings.receiver_output else {}
    projects = Projects(settings.datadir, settings.settle, elsewhere)
    if not settings.database:
        _make_folder(settings)
    engine = open_database(settings.database_url)
    who, holders = _rights(settings)
    brokers = (lambda _project: listed(settings.brokers)) if settings.brokers else holders
    ledger = Ledger(engine)
    batches = Batches(projects, ledger, Catalogue(engine), brokers, settings.batch)
    for project in projects.names():
        batches.tidy(project)
    app = sync_app(batches, who, holders, listed(settings.extensions), settings.require_acknowledgement)
    app.state.registry.register(Mirrors(ledger, projects))
    try:
        return serve(app, settings.host, settings.port)
    finally:
        engine.dispose()


def sync_app(batches: Batches, who: Any, holders: Right, extensions: Collection[str], strict: bool) -> FastAPI:
    """Make the application.

    Parameters
    ----------
    batches
        What is offered.
    who
        Dependency that gives a request's broker, or refuses it.
    holders
        Returns the brokers that may have a project.
    extensions
        What may be asked for.
    strict
        Whether a batch counts as received only when the broker says so.
    """
    app = create_app("Mini-Stream delivery: sync", description=__doc__ or "")
    for fault in _STATUS:
        app.add_exception_handler(fault, _tell_fault)
    meter = Meter(app.state.registry)

    def mirror(project: str, ext: str, broker: str = who) -> Mirror:
        if ext not in extensions:
            raise HTTPException(406, f"files {ext[:20]!r} are not offered; there are {', '.join(extensions)}")
        if broker not in holders(project):
            raise HTTPException(403, "this token is not for that project")
        batches.check(project)  # before it is counted: names that anybody makes up would fill the memory
        asking = Mirror(broker, project, ext)
        meter.heard(asking)
        return asking

    @app.api_route("/stream/{project}/{ext}", methods=["GET", "HEAD"], tags=["sync"], response_class=Response)
    async def stream(request: Request, asking: Mirror = Depends(mirror)) -> Response:  # noqa: B008 - FastAPI's way
        """Return a zip of all files of a project that end in .ext and that this broker has not had."""
        offer = await _offer(batches, asking, request)
        batch = offer.batch

        def on_sent(start: int, stop: int) -> None:
            if not strict and ACKNOWLEDGES not in request.headers and (start, stop) == (0, offer.layout.length):
                batches.sent(batch)

        headers = {BATCH: batch.id}
        content = meter.metered(Archive(offer.layout), asking)
        return RangeResponse(content, filename=batch.name, headers=headers, on_sent=on_sent)

    @app.put(
        "/stream/{project}/{ext}/batches/{batch}",
        status_code=204,
        tags=["sync"],
        openapi_extra=documented(Acknowledgement),
    )
    def acknowledge(
        batch: str,
        asking: Annotated[Mirror, Depends(mirror)],
        has: Annotated[Acknowledgement, large_json(Acknowledgement)],
    ) -> None:
        """Say that a batch has been written and verified."""
        batches.acknowledge(asking, batch, has.blake3)

    return app


async def _offer(batches: Batches, mirror: Mirror, request: Request) -> Offer:
    """Return what a mirror is to fetch, as soon as something is, within the time that the broker waits."""
    until = time.monotonic() + _wait(request.headers.get("prefer", ""))
    while (offer := await run_in_threadpool(batches.offer, mirror)) is None:
        if time.monotonic() >= until or await request.is_disconnected():
            raise HTTPException(404, f"nothing new in {mirror.project} for this broker")
        await asyncio.sleep(min(LOOK, max(until - time.monotonic(), 0)))
    return offer


def _wait(preferences: str) -> int:
    wait = re.search(r"\bwait=(\d{1,6})\b", preferences, re.ASCII)
    return min(int(wait.group(1)), LONGEST_WAIT) if wait else 0


def _rights(settings: ServerSettings) -> tuple[Any, Right]:
    """Return the dependency that gives a request's broker, and who may have a project."""
    if settings.tokens is None:
        get_logger().warning("everybody is answered: this server asks for no tokens")
        return Depends(lambda: "anybody"), lambda _project: ["anybody"]
    tokens = TokenFile(settings.tokens)
    if not tokens.entries():
        raise UserError(f"nobody has a token in {settings.tokens}; make one: delivery token add NAME --tokens FILE")

    def judge(token: str) -> str | None:
        try:
            return tokens.bearer(token)
        except UserError as error:
            get_logger().error("no token can be judged", reason=str(error))
            raise HTTPException(503, "this server cannot read its tokens; its log says why", LATER) from error

    return bearer(judge), tokens.holders


def _make_folder(settings: ServerSettings) -> None:
    try:
        (settings.datadir / ".delivery").mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise UserError(f"{settings.datadir} cannot be written to: {error.strerror}; give a --database") from error


async def _tell_fault(_request: Request, error: Exception) -> JSONResponse:
    status = next(status for kind, status in _STATUS.items() if isinstance(error, kind))
    return JSONResponse({"detail": str(error)}, status, LATER if status == 503 else None)
