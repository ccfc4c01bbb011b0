"""Limits of bodies, for strangers: FastAPI reads a body before it asks whose token a request has.

A body is small and comes at once, unless its route says otherwise: by `large_json`, which reads nothing before the
token was judged, or by `limit_body`, if it has limits of its own. FastAPI's `max_body_size` is not used: it answers
past our line of log, and knows no limit of time.
"""

import asyncio
import math
from typing import Any, TypeVar

from fastapi import Depends, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SMALL = 64 << 10
"""Bytes of a form or of JSON, which takes thirty times as many once it is parsed."""

LARGE = 64 << 20
"""Bytes of JSON that lists a hundred thousand files."""

SLOWEST = 16 << 10
"""Bytes a second of a large body at least."""

STALL = 60.0
"""Seconds that a small body may take."""

_KEY = "delivery.body_limits"
_Model = TypeVar("_Model", bound=BaseModel)


class BodyLimits:
    """ASGI middleware; pure, as `RequestLog` is.

    Parameters
    ----------
    app
        What it passes requests on to.
    stall
        Seconds that a small body may take.
    """

    def __init__(self, app: ASGIApp, stall: float) -> None:
        self._app, self._stall = app, stall

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, with no more of its body than it may have; nobody reads those of GET and HEAD."""
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD"):
            announced = int(Headers(scope=scope).get("content-length", "0"))
            receive = scope[_KEY] = _Limited(receive, announced, self._stall)
        await self._app(scope, receive, send)


class _Limited:
    """A request's `receive`, which refuses the body once it is too long or too slow."""

    def __init__(self, receive: Receive, announced: int, stall: float) -> None:
        self._receive, self._announced, self._stall = receive, announced, stall
        self._came, self._began, self._whole = 0, 0.0, False
        self.most: float = SMALL

    async def __call__(self) -> Message:
        if self._whole or self.most == math.inf:
            return await self._receive()
        self._refuse_more_than(self._announced)
        message = await self._next()
        self._came += len(message.get("body", b""))
        self._refuse_more_than(self._came)
        self._whole = not message.get("more_body")
        return message

    def _refuse_more_than(self, length: int) -> None:
        if length > self.most:
            raise HTTPException(413, f"a body of more than {self.most} bytes is not taken here")

    async def _next(self) -> Message:
        self._began = self._began or asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(self._began + self._stall + self._came / SLOWEST):
                return await self._receive()
        except TimeoutError as error:
            detail = f"only {self._came} bytes of the body came within {self._stall:g} s"
            raise HTTPException(408, detail, headers={"Connection": "close"}) from error


def limit_body(request: Request, most: float) -> None:
    """Let a request's body have so many bytes; if any number, then it may take any time as well."""
    if limited := request.scope.get(_KEY):
        limited.most = most


def large_json(model: type[_Model]) -> Any:
    """Return a dependency that reads a large body; put it after those that judge who asks."""

    async def read(request: Request) -> _Model:
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise HTTPException(415, "send JSON, and say so: Content-Type: application/json")
        limit_body(request, LARGE)
        try:
            return model.model_validate_json(await request.body())
        except ValidationError as error:
            faults = error.errors(include_url=False, include_input=False)
            raise RequestValidationError([{**fault, "loc": ("body", *fault["loc"])} for fault in faults]) from error

    return Depends(read)


def documented(model: type[BaseModel]) -> dict[str, Any]:
    """Return what a route's `openapi_extra` says of a body that is read by `large_json`."""
    content = {"application/json": {"schema": model.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}
