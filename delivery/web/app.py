"""The frame of every service: health, metrics, documentation, errors and a line of log for each request.

Errors have the body ``{"detail": …}``. A request that fails by a fault of ours is logged with its traceback and
answered with 500 and no more; one that fails when its answer has begun ends with a broken connection, so that nobody
takes the part for the whole.
"""

import gc
import socket
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from sqlalchemy.exc import DataError, DBAPIError
from starlette.requests import ClientDisconnect

from delivery.web.bodies import STALL, BodyLimits
from delivery.web.heads import LimitedHeadProtocol
from delivery.web.requests import RequestLog
from ministream.base.errors import UserError
from ministream.base.lifecycle import StopFlag
from ministream.base.log import get_logger

GRACE = 5
"""Seconds that requests have to end once the service is asked to stop; downloads that are cut are resumed later."""

GARBAGE = 50_000
"""Objects made between two looks for garbage: a request for ten thousand files makes as many, and none is garbage."""

LATER = {"Retry-After": "10"}
"""Header of answers that another try may mend."""

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create_app(
    title: str,
    *,
    description: str = "",
    version: str = "1",
    lifespan: Lifespan | None = None,
    stall: float = STALL,
    **options: Any,
) -> FastAPI:
    """Make the application of a service; its routes are added to it.

    Its metrics go to ``app.state.registry``, which /metrics serves.

    Parameters
    ----------
    title, description, version
        What /docs says.
    lifespan
        What is open while the service runs.
    stall
        Seconds that a small body may take.
    options
        More of FastAPI's.
    """
    app = FastAPI(title=title, description=description, version=version, lifespan=lifespan, redoc_url=None, **options)
    app.state.registry = CollectorRegistry()
    app.add_middleware(BodyLimits, stall=stall)
    app.add_middleware(RequestLog, registry=app.state.registry)
    app.add_exception_handler(UserError, _on_user_error)
    app.add_exception_handler(DBAPIError, _on_no_records)
    app.add_exception_handler(DataError, _on_no_value)
    app.add_exception_handler(RequestValidationError, _on_bad_request)
    app.add_exception_handler(ClientDisconnect, _on_broken_off)

    @app.get("/healthz", response_class=PlainTextResponse, tags=["service"])
    def healthz() -> str:
        """Say that the service serves."""
        return "ok\n"

    @app.get("/metrics", response_class=PlainTextResponse, tags=["service"])
    def metrics() -> Response:
        """Return the metrics, for Prometheus."""
        return Response(generate_latest(app.state.registry), media_type=CONTENT_TYPE_LATEST)

    return app


def bearer(check: Callable[[str], str | None]) -> Any:
    """Return a dependency that admits requests with a bearer token and gives their route the bearer's name.

    Parameters
    ----------
    check
        Returns whose token this is, None if it is nobody's. Called in a thread.
    """
    scheme = HTTPBearer(auto_error=False, description="Authorization: Bearer TOKEN")

    def who(given: Annotated[HTTPAuthorizationCredentials | None, Depends(scheme)]) -> str:
        name = check(given.credentials) if given else None
        if name is None:
            detail = "this token is not known here, or no more" if given else "a bearer token is needed"
            raise HTTPException(401, detail, headers={"WWW-Authenticate": "Bearer"})
        return name

    return Depends(who)


def serve(app: FastAPI, host: str, port: int) -> int:
    """Serve `app` until SIGINT or SIGTERM; logs `serving` with the address once it does.

    Raises
    ------
    UserError
        If the address can't be listened on.
    """
    config = server_config(app, host, port)
    listening = _listen(config)
    get_logger().info("serving", address=f"{host}:{listening.getsockname()[1]}")
    tend_garbage()
    stop = StopFlag().install()  # uvicorn passes signals on to it at the end, which would kill otherwise
    uvicorn.Server(config).run(sockets=[listening])
    stop.raise_if_set()
    return 0


def server_config(app: FastAPI, host: str = "127.0.0.1", port: int = 0) -> uvicorn.Config:
    """Return how all services are served."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=LimitedHeadProtocol,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE,
    )


def tend_garbage() -> None:
    """Look for garbage more rarely, and not among what is here by now: that would delay first bytes by 40 ms."""
    gc.freeze()
    gc.set_threshold(GARBAGE)


def _listen(config: uvicorn.Config) -> socket.socket:
    try:
        return socket.create_server((config.host, config.port), backlog=config.backlog, reuse_port=False)
    except OSError as error:
        raise UserError(
            f"cannot listen on {config.host}:{config.port}: {error.strerror}; give another --port"
        ) from error


async def _on_broken_off(_request: Request, _error: Exception) -> JSONResponse:
    return JSONResponse({"detail": "the request broke off"}, status_code=400)  # for the log: nobody reads it


async def _on_user_error(_request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, status_code=400)


async def _on_bad_request(_request: Request, error: Exception) -> JSONResponse:
    """Say what is wrong where, in words; without what was sent, which may be a password, or no text at all."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for it
    places = (".".join(map(str, fault["loc"][1:])) for fault in error.errors())
    words = (fault["msg"].removeprefix("Value error, ") for fault in error.errors())
    told = "; ".join(": ".join(filter(None, pair)) for pair in zip(places, words, strict=True))
    return JSONResponse({"detail": told.encode(errors="replace").decode()}, status_code=422)


async def _on_no_value(_request: Request, _error: Exception) -> JSONResponse:
    return JSONResponse({"detail": "there is text with a NUL in this request, or too large a number"}, 400)


async def _on_no_records(_request: Request, error: Exception) -> JSONResponse:
    """Answer where the database can't be written to: nothing is lost, and another try may do."""
    get_logger().error("cannot keep records: is the disk full?", reason=str(getattr(error, "orig", error)))
    return JSONResponse({"detail": "the server cannot keep its records now; try again later"}, 503, LATER)
