"""What a service answers to those that watch it: `/healthz` for an engine, `/metrics` for Prometheus.

A thread of its own answers, so that a service that is busy is not taken for dead; what it tells, it asks the service
for at that moment. There is no authentication: by default only this machine is answered.
"""

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.registry import Collector

from ministream.base.errors import UserError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

PATIENCE = 5.0
"""Seconds in which a question must have been asked."""


@dataclass(frozen=True, slots=True)
class Health:
    """How a service is: whether it can be used, and what it is doing or why it cannot."""

    ready: bool
    reason: str


@contextmanager
def serve_health(address: str, health: Callable[[], Health], figures: Collector | None = None) -> Iterator[str]:
    """Answer `GET /healthz` (200 or 503, and a JSON object with the reason) and `GET /metrics` at `address`.

    Parameters
    ----------
    address
        ``HOST:PORT``; port 0 is any free one.
    health, figures
        What is told; both are asked from another thread.

    Yields
    ------
    str
        The address, with the port that was really bound.

    Raises
    ------
    UserError
        If it cannot listen there.
    """
    registry = CollectorRegistry()
    if figures is not None:
        registry.register(figures)
    server = _listen(address, _application(health, registry))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="health", daemon=True)
    thread.start()
    try:
        yield f"{address.rpartition(':')[0]}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False  # a stranger that asks slowly must not hold up the end


class _Handler(WSGIRequestHandler):
    timeout = PATIENCE

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its own name
        """Say nothing: an engine asks every few seconds."""


def _listen(address: str, application: Callable[..., Iterable[bytes]]) -> WSGIServer:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"{address!r} is no address: give HOST:PORT")
    try:
        return make_server(host, int(port), application, _Server, _Handler)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"cannot listen at {address}: {error}; choose another address (port 0: any free one)"
        ) from error


def _application(health: Callable[[], Health], registry: CollectorRegistry) -> Callable[..., Iterable[bytes]]:
    metrics: Callable[..., Iterable[bytes]] = make_wsgi_app(registry)

    def answer(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if environ["REQUEST_METHOD"] == "GET" and path == "/metrics":
            return metrics(environ, start_response)
        status, content = HTTPStatus.NOT_FOUND, {"reason": "ask GET /healthz or GET /metrics"}
        if environ["REQUEST_METHOD"] == "GET" and path == "/healthz":
            state = health()
            status = HTTPStatus.OK if state.ready else HTTPStatus.SERVICE_UNAVAILABLE
            content = {"reason": state.reason}
        start_response(f"{status.value} {status.phrase}", [("Content-Type", "application/json")])
        return [json.dumps(content).encode() + b"\n"]

    return answer
