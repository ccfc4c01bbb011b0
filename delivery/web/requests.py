"""A line of log and two metrics for each request; nothing that identifies a token is ever among them."""

import time
from collections.abc import MutableMapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ministream.base.errors import UserError
from ministream.base.log import get_logger

QUIET = ("/healthz", "/metrics")
"""Paths that machines ask for all the time: logged at debug level."""


class RequestLog:
    """ASGI middleware; pure, since Starlette's convenient kind copies every block of a stream through a queue."""

    def __init__(self, app: ASGIApp, registry: CollectorRegistry) -> None:
        self._app = app
        self._seconds = Histogram(
            "delivery_request_seconds", "Time to the last byte.", ("method", "route", "status"), registry=registry
        )
        self._bytes = Counter("delivery_sent_bytes", "Bytes of bodies sent.", registry=registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and tell how it went."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send)
        began = time.monotonic()
        try:
            await self._app(scope, receive, answer)
        except Exception as error:
            await self._failed(error, answer, scope, receive)
        finally:
            self._tell(scope, answer, time.monotonic() - began)

    async def _failed(self, error: Exception, answer: "_Answer", scope: Scope, receive: Receive) -> None:
        """Log what went wrong; an answer that has begun is left unfinished, upon which the server breaks it off."""
        if isinstance(error, UserError):
            get_logger().warning("answer broken off", path=scope["path"], reason=str(error))
        else:
            get_logger().exception("internal fault: please report this", path=scope["path"])
        if not answer.status:
            await JSONResponse({"detail": "internal fault; the log says more"}, 500)(scope, receive, answer)

    def _tell(self, scope: Scope, answer: "_Answer", seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "")
        self._seconds.labels(scope["method"], route, answer.status).observe(seconds)
        self._bytes.inc(answer.sent)
        tell = get_logger().debug if scope["path"] in QUIET else get_logger().info
        client = (scope.get("client") or ("",))[0]
        tell(
            "request",
            method=scope["method"],
            path=scope["path"],
            status=answer.status,
            bytes=answer.sent,
            seconds=round(seconds, 4),
            client=client,
        )


class _Answer:
    """A request's `send` that remembers the status and counts the bytes."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status, self.sent = 0, 0

    async def __call__(self, message: Message) -> None:
        kind: MutableMapping[str, Any] = message
        if kind["type"] == "http.response.start":
            self.status = kind["status"]
        else:
            self.sent += len(kind.get("body", b""))
        await self._send(message)
