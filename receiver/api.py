"""What the receiver answers over HTTP; `receiver.caller` is its client.

    GET  /healthz, /metrics           without a token
    GET  /status                      state, reason, figures and files of the run, or of the last one
    POST /run                         {listeners, options} -> 202 {run}; 409 while one is under way, 422 with the reason
    GET  /run/{id}/events?after=N     NDJSON: one numbered event a line, to the final one; an empty line is a heartbeat
    POST /run/{id}/stop               {reason}
    POST /workers                     {number, name} -> {post}: a worker asks for work, and is kept waiting for a moment
    POST /workers/{number}/events     {run, events, ended} -> {stop}: what happened at its post

Nothing is read of a request before its token is known to be right, and never more than `LARGEST` bytes.
"""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.types import ASGIApp, Receive, Scope, Send

from ministream.base.errors import UserError
from ministream.base.lifecycle import SLICE
from receiver.crew import as_message
from receiver.desk import BusyError, Desk, Order, Run
from receiver.metrics import Metrics
from receiver.orders import check_order
from receiver.roster import Roster
from receiver.settings import ReceiverSettings

OPEN = ("/healthz", "/metrics")
"""Paths that are answered without a token."""

LARGEST = 1 << 20
"""Bytes of the longest request: what a worker says in one go."""

HEARTBEAT = 5.0
"""Seconds after which a follower who was told nothing is sent an empty line."""

POLL = 2.0
"""Seconds for which a worker without a post is kept waiting before it is to ask again."""

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,80}$")]
Text = Annotated[str, StringConstraints(max_length=1000)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class RunBody(_Body):
    """`POST /run`."""

    listeners: list[Text] = Field(max_length=256)
    options: dict[Text, bool | int | float | Text] = {}
    tunnel: dict[Text, bool | int | float | Text | None] = {}


class StopBody(_Body):
    """`POST /run/{id}/stop`."""

    reason: Text = ""


class JoinBody(_Body):
    """`POST /workers`: `number` is the worker's own choice, new with each start."""

    number: Name
    name: Name


class ReportBody(_Body):
    """`POST /workers/{number}/events`; `ended` is empty for well, and missing while the worker is at work."""

    run: Name
    events: list[dict[str, Any]] = []
    ended: Text | None = None


def make_api(settings: ReceiverSettings, desk: Desk, roster: Roster, token: str) -> ASGIApp:
    """Return the application."""
    api = FastAPI(title="Mini-Stream receiver", docs_url=None, redoc_url=None, openapi_url=None)
    api.add_exception_handler(RequestValidationError, _refuse_form)
    api.add_exception_handler(UserError, _refuse)
    _add_service(api, desk)
    _add_runs(api, settings, desk)
    _add_workers(api, desk, roster)
    return _Guard(api, token)


def _add_service(api: FastAPI, desk: Desk) -> None:
    metrics = Metrics(desk)

    @api.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"state": desk.status()["state"]}

    @api.get("/metrics")
    async def scrape() -> Response:
        return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST)

    @api.get("/status")
    async def status() -> dict[str, Any]:
        return desk.status()


def _add_runs(api: FastAPI, settings: ReceiverSettings, desk: Desk) -> None:
    @api.post("/run", status_code=202)
    async def begin(body: RunBody) -> dict[str, str]:
        order = Order(listeners=body.listeners, options=body.options, tunnel=body.tunnel)
        return {"run": desk.submit(check_order(order, settings)).id}

    @api.get("/run/{number}/events")
    async def events(number: str, after: int = 0) -> StreamingResponse:
        return StreamingResponse(_lines(_find(desk, number), after), media_type="application/x-ndjson")

    @api.post("/run/{number}/stop", status_code=202)
    async def stop(number: str, body: StopBody) -> dict[str, str]:
        _find(desk, number).stop.request(f"a client asked for it: {body.reason or 'no reason given'}")
        return {"run": number}


def _add_workers(api: FastAPI, desk: Desk, roster: Roster) -> None:
    @api.post("/workers")
    async def join(body: JoinBody, request: Request) -> dict[str, Any]:
        end = asyncio.get_running_loop().time() + POLL
        while (post := roster.join(body.number, body.name)) is None:
            if desk.closed or asyncio.get_running_loop().time() > end or await request.is_disconnected():
                return {"post": None}
            await asyncio.sleep(SLICE)
        return {"post": as_message(post)}

    @api.post("/workers/{number}/events")
    async def report(number: str, body: ReportBody) -> dict[str, str]:
        try:
            return {"stop": roster.hear(number, body.run, body.events, body.ended)}
        except KeyError:
            raise HTTPException(404, f"worker {number} has no post in run {body.run}") from None


def _find(desk: Desk, number: str) -> Run:
    try:
        return desk.find(number)
    except KeyError:
        raise HTTPException(404, f"no run {number} here: it is over, or the receiver was restarted") from None


async def _lines(run: Run, after: int) -> AsyncIterator[str]:
    """Yield the events of `run` that come after number `after`, a JSON object a line, up to the final one."""
    clock = asyncio.get_running_loop().time
    spoken = clock()
    while True:
        events, over = run.after(after)
        for event in events:
            yield json.dumps(event, default=str) + "\n"
            after, spoken = event["n"], clock()
        if over:
            return
        if clock() - spoken > HEARTBEAT:
            yield "\n"
            spoken = clock()
        await asyncio.sleep(SLICE)


async def _refuse(_request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 409 if isinstance(error, BusyError) else 422)


async def _refuse_form(_request: Request, error: Exception) -> JSONResponse:
    problems = error.errors() if isinstance(error, RequestValidationError) else ()
    text = "; ".join(f"{'.'.join(map(str, problem['loc'][1:]))}: {problem['msg']}" for problem in problems)
    return JSONResponse({"detail": text}, 422)


class _Guard:
    """Lets in requests with the right token and of bounded size; others are answered before they are read."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._expected = app, f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refusal := self._refusal(scope)) is not None:
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Callable[[Scope, Receive, Send], Awaitable[None]] | None:
        headers = dict(scope["headers"])
        if scope["path"] not in OPEN and not secrets.compare_digest(headers.get(b"authorization", b""), self._expected):
            detail = "no token, or a wrong one: give the one in the receiver's access folder"
            return JSONResponse({"detail": detail}, 401, {"WWW-Authenticate": "Bearer"})
        length = headers.get(b"content-length", b"0")
        if b"transfer-encoding" in headers or not length.isdigit() or int(length) > LARGEST:
            return JSONResponse({"detail": f"say how long it is, and no more than {LARGEST} bytes"}, 413)
        return None
