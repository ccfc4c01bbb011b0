"""One ZeroMQ socket with all that a link needs of it: bind or connect, waits that can end, a clean end.

A `Line` has a context of its own, because that alone can tell when the last byte has left: `flush` closes
the socket and waits for the context's end. (Nothing is flushed when a process simply exits.) A socket that is
closed without a flush drops what is still queued, unless `close` is given a moment for it.
"""

import functools
import math
import operator
import threading
from typing import Self

import zmq
from zmq.utils.monitor import recv_monitor_message

from aps_mini_apps.links._waiting import Patience
from ministream.base.errors import UserError
from ministream.base.lifecycle import SLICE

SLICE_MS = round(SLICE * 1000)

LARGEST_FRAME = 1 << 30
"""Bytes: 16384 x 16384 float32. A peer that announces a larger message is disconnected by ZeroMQ."""

LARGEST_REQUEST = 4096
"""Bytes: many times the longest request of any protocol here."""

KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_COUNT = 10, 5, 4
"""Seconds of silence until a watched peer's machine is asked for a sign of life, seconds between two questions, and how
many may stay unanswered. The system asks, not ZeroMQ: a reader that has no room for frames reads no PING either, and
would be cut off; and its late PONG to a sender that has closed would reset the connection, and what is on its way.
"""

_STRANGERS = (zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
"""What connects and does not speak ZeroMQ: a port scanner, or a proxy's check whether somebody is there."""

_ONLY_PORT_TAKEN = "the port is in use by another program; end that one or choose another port (* is a free one)"
_BAD_BIND = "give tcp://HOST:PORT, where HOST is an address of this machine or *"
_BAD_CONNECT = "give tcp://HOST:PORT of the program to read from"


class Line:
    """A ZeroMQ socket of type `kind`; it belongs to one thread at a time.

    Parameters
    ----------
    kind
        `zmq.PUSH`, …
    patience
        What ends its waits.
    high_water_mark
        Messages queued at this end before it blocks, in either direction; 0 is without bound.
    largest
        Bytes of the largest message that is taken.
    watched
        Follow who connects and leaves (`connections`). A peer whose machine is gone counts as gone after half a minute
        of silence, or, with frames under way to it, when the system gives up sending (a quarter of an hour).
    after
        Another line, which ends later: what this one sends leaves after what that one has sent before, since one thread
        of their common context does both.
    """

    def __init__(
        self,
        kind: int,
        patience: Patience,
        *,
        high_water_mark: int = 0,
        largest: int = LARGEST_FRAME,
        watched: bool = False,
        after: "Line | None" = None,
    ) -> None:
        self.patience = patience
        self._owns_context = after is None
        self._context = zmq.Context() if after is None else after.socket.context
        self.socket: zmq.Socket[bytes] = self._context.socket(kind)
        self.socket.linger = 0
        self.socket.sndhwm = self.socket.rcvhwm = high_water_mark
        self.socket.maxmsgsize = largest
        self.socket.sndtimeo = SLICE_MS
        self._connections = self._strangers = 0
        self._monitor = None
        if watched:
            self.socket.tcp_keepalive, self.socket.tcp_keepalive_idle = 1, KEEPALIVE_IDLE
            self.socket.tcp_keepalive_intvl, self.socket.tcp_keepalive_cnt = KEEPALIVE_INTERVAL, KEEPALIVE_COUNT
            watched_events = [zmq.EVENT_HANDSHAKE_SUCCEEDED, zmq.EVENT_DISCONNECTED, *_STRANGERS]
            self._monitor = self.socket.get_monitor_socket(functools.reduce(operator.or_, watched_events))

    @property
    def endpoint(self) -> str:
        """The endpoint bound or connected last, with its real port.

        A wildcard host, which is bound as 0.0.0.0, reads 127.0.0.1: a peer on this machine can connect to it.
        """
        text = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)
        return text.replace("//0.0.0.0:", "//127.0.0.1:")

    def bind(self, endpoint: str) -> Self:
        """Listen at `endpoint`, or close the line and raise a `UserError` that says why not."""
        try:
            self.socket.bind(endpoint)
        except zmq.ZMQError as error:
            self.close()
            if error.errno == zmq.EADDRINUSE:
                raise UserError(f"cannot listen at {endpoint}: {_ONLY_PORT_TAKEN}") from error
            raise UserError(f"cannot listen at {endpoint} ({error}): {_BAD_BIND}") from error
        return self

    def connect(self, endpoint: str) -> Self:
        """Connect to `endpoint` as soon as somebody listens there; `UserError` if it is no address."""
        try:
            self.socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise UserError(f"cannot connect to {endpoint} ({error}): {_BAD_CONNECT}") from error
        return self

    def send(self, message: bytes | bytearray, complaint: str) -> None:
        """Queue `message` without a copy (it must not change later); wait while the queue is full."""

        def taken() -> bool:
            try:
                self.socket.send(message, copy=False)
            except zmq.Again:
                return False
            return True

        self.patience.wait(taken, complaint, alive=lambda: self.connections() > 0)

    def receive(self, complaint: str, *, while_connected: bool = False) -> memoryview:
        """Wait for a message and return its bytes, uncopied; one in several parts comes back empty.

        `while_connected` leaves a peer that is there all the time it needs, which is for peers that work, not send.
        """
        self.patience.wait(
            lambda: self.socket.poll(SLICE_MS, zmq.POLLIN) != 0,
            complaint,
            alive=lambda: while_connected and self.connections() > 0,
        )
        parts = self.socket.recv_multipart(copy=False)
        return parts[0].buffer if len(parts) == 1 else memoryview(b"")

    def connections(self, wait_ms: int = 0) -> int:
        """Return how many peers are connected, if they are `watched`; wait up to `wait_ms` for one to come."""
        while self._monitor is not None and self._monitor.poll(0 if self._connections else wait_ms):
            event = recv_monitor_message(self._monitor)["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._connections += 1
            elif event in _STRANGERS:
                self._strangers += 1
            elif self._strangers:  # each is reported once more, as disconnected
                self._strangers -= 1
            else:
                self._connections -= 1
        return self._connections

    def flush(self, complaint: str) -> None:
        """Close, and wait until all that was sent has left for those who are connected.

        A peer that is connected may take as long as it needs: should it leave, ZeroMQ drops what was for it, and the
        wait is over. The waiting is done by a thread, since ZeroMQ's own can neither be sliced nor called off.
        """
        limit = self.patience.timeout
        there = self.connections(SLICE_MS) > 0  # who came a moment ago may not have been announced yet
        self._close_sockets(-1 if limit is None or there else math.ceil(1000 * limit) + 10 * SLICE_MS)
        last = threading.Thread(target=self._context.term, name="flush", daemon=True)
        last.start()

        def left() -> bool:
            last.join(SLICE)
            return not last.is_alive()

        self.patience.wait(left, complaint, alive=lambda: there)

    def close(self, linger: float = 0.0) -> None:
        """Close, if that has not been done; what is still queued gets `linger` seconds to leave."""
        if not self.socket.closed:
            self._close_sockets(round(1000 * linger))
            if self._owns_context:
                self._context.term()

    def _close_sockets(self, linger_ms: int) -> None:
        if self._monitor is not None:
            self.socket.disable_monitor()
            self._monitor.close(linger=0)
        self.socket.close(linger=linger_ms)
