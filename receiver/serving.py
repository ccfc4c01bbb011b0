"""The HTTP server: uvicorn on a thread of its own, so that signals and child processes stay with the main one."""

import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import uvicorn
from starlette.types import ASGIApp

from ministream.base.errors import UserError
from ministream.base.lifecycle import SLICE

GRACE = 5
"""Seconds that requests under way have in the end; followers get their final event in that time."""

BACKLOG = 128


class Serving:
    """Serves `app` inside the context, on a socket that is bound from the constructor on.

    Parameters
    ----------
    app
        The ASGI application.
    host, port
        Where; port 0 is any free one.
    certificate, key
        Files for TLS; None: plain HTTP.

    Raises
    ------
    UserError
        If the address is not one of this machine, or is taken.
    """

    def __init__(self, app: ASGIApp, host: str, port: int, *, certificate: Path | None, key: Path | None) -> None:
        self._socket = _bind(host, port)
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=GRACE,
                ssl_certfile=certificate,
                ssl_keyfile=key,
            )
        )
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), name="http", daemon=True)

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._socket.getsockname()[1])

    @property
    def failed(self) -> bool:
        """Whether the server has ended by itself."""
        return not self._thread.is_alive()

    def __enter__(self) -> Self:
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            self._thread.join(SLICE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise UserError(
            f"cannot listen on {host}, port {port}: {error.strerror}; choose --bind and a free --port"
        ) from error
