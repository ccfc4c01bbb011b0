"""Parts of files as bodies of requests: the system sends them from its own memory, and they never come into ours.

httpx hands every block of a body through a parser of HTTP, to half of what this machine could send. It keeps all else:
a request says in its extensions which `part` of a file its body is, and whoever can't send that reads the body instead.
"""

import http.client
import os
import select
import ssl
import threading
from contextlib import suppress
from typing import NamedTuple
from urllib.request import getproxies

import httpx

EXTENSION = "delivery.part"


class Part(NamedTuple):
    """Bytes `start` up to, without, `stop` of an open file."""

    descriptor: int
    start: int
    stop: int


class FileTransport(httpx.BaseTransport):
    """httpx's own transport, but for plain requests whose bodies are parts of files.

    It trusts no certificate: to read all those that the system trusts takes longer than to send a small file.
    """

    def __init__(self) -> None:
        self._usual = httpx.HTTPTransport(verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        self._idle: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and return its answer."""
        part = request.extensions.get(EXTENSION)
        if part is None or request.url.scheme != "http":
            return self._usual.handle_request(request)
        line = self._line(request)
        try:
            answer = _ask(line, request, part)
        except (OSError, http.client.HTTPException) as error:
            line.close()
            raise httpx.NetworkError(str(error) or type(error).__name__, request=request) from error
        with self._lock:
            self._idle.append(line)  # one that the server has closed connects anew by itself
        return answer

    def _line(self, request: httpx.Request) -> http.client.HTTPConnection:
        """Return a connection to the request's server: one that is idle and still stands, or else a new one."""
        address, seconds = (request.url.host, request.url.port or 80), request.extensions.get("timeout", {}).get("read")
        with self._lock:
            line = next((idle for idle in self._idle if (idle.host, idle.port) == address), None)
            if line:
                self._idle.remove(line)
        line = line or http.client.HTTPConnection(*address, timeout=seconds)
        if line.sock and _is_readable(line):  # the server has closed it, or says what nobody asked
            line.close()
        return line

    def close(self) -> None:
        """Close all connections."""
        self._usual.close()
        with self._lock:
            while self._idle:
                self._idle.pop().close()


def _ask(line: http.client.HTTPConnection, request: httpx.Request, part: Part) -> httpx.Response:
    line.putrequest(request.method, request.url.raw_path.decode("ascii"), skip_host=True, skip_accept_encoding=True)
    for name, value in request.headers.raw:
        line.putheader(name, value)
    line.endheaders()
    with (
        open(part.descriptor, "rb", 0, closefd=False) as file,
        suppress(ConnectionError),
    ):  # refused half-way: it says why
        if line.sock.sendfile(file, part.start, part.stop - part.start) < part.stop - part.start:
            raise OSError("the file has become shorter")
    answer = line.getresponse()
    return httpx.Response(answer.status, headers=answer.getheaders(), content=answer.read(), request=request)


def _is_readable(line: http.client.HTTPConnection) -> bool:
    poll = select.poll()
    poll.register(line.sock, select.POLLIN)
    return bool(poll.poll(0))


def transport_to(service: str) -> httpx.BaseTransport | None:
    """Return how to send to a service; None if httpx knows better: by TLS, or a proxy of the environment's."""
    plain = service.startswith("http://") and hasattr(os, "sendfile") and not getproxies()
    return FileTransport() if plain else None
