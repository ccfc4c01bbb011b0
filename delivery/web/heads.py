"""Limits of what comes before a body, for strangers: uvicorn keeps all of it, and waits for it for ever."""

import asyncio

from delivery.web.socket_body import SocketBodyProtocol

LARGEST = 64 << 10
"""Bytes of a request's line and headers, or of the trailers behind its body."""

PATIENCE = 60.0
"""Seconds without a request that end a connection on which nothing else comes."""


class LimitedHeadProtocol(SocketBodyProtocol):
    """uvicorn's protocol, with these limits."""

    _came = 0
    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Wait for the first request."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._wait_no_more()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, and count what belongs to no body."""
        self._came += len(data)
        is_body = self._unread > 0
        super().data_received(data)
        if is_body:
            self._body_came()
        if self._came > LARGEST and not self.transport.is_closing():
            self.send_400_response(f"The head of a request has more than {LARGEST} bytes.")

    def on_headers_complete(self) -> None:
        """Begin a request."""
        self._came = 0
        self._wait_no_more()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take in a piece of a body."""
        super().on_body(body)
        self._body_came()

    def on_response_complete(self) -> None:
        """Wait for the next request, unless it is here."""
        if not (self.pipeline or self.transport.is_closing()):
            self._wait()
        super().on_response_complete()

    def _body_came(self) -> None:
        self._came = 0
        if self._waiting:  # the request was answered before all of it was here
            self._wait()

    def _wait(self) -> None:
        self._wait_no_more()
        self._waiting = self.loop.call_later(PATIENCE, self.transport.close)

    def _wait_no_more(self) -> None:
        if self._waiting:
            self._waiting.cancel()
            self._waiting = None
