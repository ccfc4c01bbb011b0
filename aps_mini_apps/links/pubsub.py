"""PUB/SUB as the APS mini-apps use it, with their synch handshake; and the publisher of reconstructions.

The handshake: the publisher answers `synch_count` empty REQ messages, each with an empty one, before its
first frame; a subscriber sends one for each of its workers. Over and above that our publisher waits for a
subscriber whenever it has none, and blocks instead of dropping where a high water mark is given. Our
subscriber asks only once its subscription is on its way, so that a plain PUB socket too knows it by then.
"""

import zmq
from numpy.typing import DTypeLike

from aps_mini_apps.frames import Frame, Volume
from aps_mini_apps.links._sequence import SequenceCounter
from aps_mini_apps.links._sockets import LARGEST_REQUEST, SLICE_MS, Line
from aps_mini_apps.links._timage import TImageReceiver, TImageSender
from aps_mini_apps.links._waiting import Patience
from aps_mini_apps.wire import WireError, timage
from ministream.base.errors import UserError
from ministream.base.lifecycle import StopFlag
from ministream.base.log import get_logger
from ministream.base.owner import Owner

VOLUMES_QUEUED = 4
"""Images held for a slow subscriber; it misses the ones after that."""

LINGER = 2.0
"""Seconds that the last images get to leave."""


class Publisher(TImageSender):
    """Listens for subscribers and sends each of them all frames.

    Parameters
    ----------
    bind_endpoint
        tcp://HOST:PORT, with `*` for every address of this machine, or for any free port.
    high_water_mark
        Frames queued for a subscriber before `send` blocks; 0 is without bound.
    synch_endpoint
        Where to listen for the handshake; None: there is none.
    synch_count
        Number of synch messages that must come before the first frame.
    stop, timeout
        What ends a wait: the flag, or so many seconds without progress (None: never).

    Raises
    ------
    UserError
        If it cannot listen there.
    LinkTimeoutError, Stopped
        On `send` and `end`.
    """

    def __init__(
        self,
        bind_endpoint: str,
        *,
        high_water_mark: int = 0,
        synch_endpoint: str | None = None,
        synch_count: int = 1,
        stop: StopFlag | None = None,
        timeout: float | None = None,
    ) -> None:
        patience = Patience(stop, timeout)
        line = Line(zmq.XPUB, patience, high_water_mark=high_water_mark, largest=LARGEST_REQUEST, watched=True)
        line.socket.setsockopt(zmq.XPUB_NODROP, 1)
        super().__init__(line.bind(bind_endpoint), "the subscriber")
        self._topics: set[bytes] = set()
        self._synch: Line | None = None
        self._synch_count, self._synch_done = synch_count, 0
        if synch_endpoint is not None:
            self._synch = self._open_synch(synch_endpoint, patience)

    @property
    def synch_endpoint(self) -> str | None:
        """Where synch messages are really awaited; None without a handshake."""
        return self._synch.endpoint if self._synch is not None else None

    def close(self) -> None:
        """Give the ports back; without an `end` before, what is queued is dropped."""
        super().close()
        if self._synch is not None:
            self._synch.close(LINGER)

    def _open_synch(self, endpoint: str, patience: Patience) -> Line:
        try:
            return Line(zmq.REP, patience, largest=LARGEST_REQUEST).bind(endpoint)
        except UserError:
            self.close()
            raise

    def _prepare(self) -> None:
        if self._synch is not None:
            self._answer_synch(self._synch)
            self._answer_more_synch(self._synch)
        self._line.patience.wait(self._subscribed, self._complaint("asked for no frame"))

    def _answer_synch(self, line: Line) -> None:
        while self._synch_done < self._synch_count:
            line.receive(
                f"{self._synch_done} of {self._synch_count} synch messages came to {line.endpoint}, then "
                f"none for {line.patience}; is the distributor running, and does it know that address?"
            )
            line.send(b"", f"the synch message at {line.endpoint} could not be answered")
            self._synch_done += 1

    def _answer_more_synch(self, line: Line) -> None:
        """Answer those that come later than the number waited for: a distributor asks once for each worker."""
        while line.socket.poll(0):
            line.socket.recv()
            line.send(b"", f"the synch message at {line.endpoint} could not be answered")

    def _subscribed(self) -> bool:
        """Read who came (1) and who left (0); wait for somebody if there is nobody."""
        while self._line.socket.poll(0 if self._topics else SLICE_MS):
            message = self._line.socket.recv()
            if message[:1] == b"\1":
                self._topics.add(message[1:])
            elif message[:1] == b"\0":
                self._topics.discard(message[1:])
        return bool(self._topics)


class Subscriber(TImageReceiver):
    """Subscribes to a `Publisher`, or to an acquisition program of the APS mini-apps.

    Parameters
    ----------
    connect_endpoint
        tcp://HOST:PORT of the publisher, which need not be there yet.
    high_water_mark
        Frames queued at this end; 0 is without bound.
    synch_endpoint
        Where the publisher awaits synch messages; None: there is no handshake.
    synch_count
        Number of synch messages to send: one for each worker.
    pixel_type
        What the pixels are where the messages do not say.
    check_sequence
        At the end, count as lost the packet numbers below the highest that never came; for a sender of the
        APS mini-apps that was to send the whole file.
    stop, timeout
        What ends a wait: the flag, or so many seconds without a message (None: never).

    Raises
    ------
    UserError
        If an endpoint is no address.
    LinkTimeoutError, Stopped
        On `receive`.
    """

    def __init__(
        self,
        connect_endpoint: str,
        *,
        high_water_mark: int = 0,
        synch_endpoint: str | None = None,
        synch_count: int = 1,
        pixel_type: DTypeLike | None = None,
        check_sequence: bool = False,
        stop: StopFlag | None = None,
        timeout: float | None = None,
    ) -> None:
        line = Line(
            zmq.SUB,
            Patience(stop, timeout),
            high_water_mark=high_water_mark,
            watched=True,
        )
        line.socket.setsockopt(zmq.SUBSCRIBE, b"")  # before connecting: then it is the first thing sent
        line.connect(connect_endpoint)
        counter = SequenceCounter(check_unnumbered=check_sequence)
        super().__init__(line, connect_endpoint, counter, pixel_type=pixel_type)
        self._synch_endpoint, self._synch_count = synch_endpoint, synch_count

    def receive(self) -> Frame | None:
        """Return the next frame, its pixels a view of the message; None once the scan is over.

        The first call waits for the connection, then goes through the handshake.
        """
        if self._synch_endpoint is not None:
            self._send_synch(self._synch_endpoint)
            self._synch_endpoint = None
        return super().receive()

    def _send_synch(self, endpoint: str) -> None:
        patience = self._line.patience
        self._line.patience.wait(
            lambda: self._line.connections(SLICE_MS) > 0,
            f"no connection to {self._endpoint} for {patience}; is the publisher running?",
        )
        line = Line(zmq.REQ, patience, after=self._line).connect(endpoint)
        try:
            for number in range(1, self._synch_count + 1):
                complaint = (
                    f"synch message {number} of {self._synch_count} was not answered from {endpoint} for "
                    f"{patience}; does the publisher wait for synch messages there?"
                )
                line.send(b"", complaint)
                line.receive(complaint)
        finally:
            line.close()


class VolumePublisher(Owner):
    """Publishes reconstructed slabs, or frames, for people to look at: who is slow misses some.

    Parameters
    ----------
    bind_endpoint
        tcp://HOST:PORT, with `*` for every address of this machine, or for any free port.

    Raises
    ------
    UserError
        If it cannot listen there.
    """

    def __init__(self, bind_endpoint: str) -> None:
        line = Line(zmq.PUB, Patience(), high_water_mark=VOLUMES_QUEUED, largest=LARGEST_REQUEST)
        self._line = line.bind(bind_endpoint)
        self.endpoint = line.endpoint

    def publish(self, image: Volume | Frame) -> None:
        """Send `image` to the subscribers of this moment, without waiting for any of them.

        One that is too large for a message is not sent; the log says so.
        """
        try:
            message = timage.encode(image)
        except WireError as error:
            get_logger().warning("not published", endpoint=self.endpoint, reason=str(error))
            return
        self._line.send(message, "")

    def close(self) -> None:
        """Give the port back, after a moment for what is queued."""
        self._line.close(LINGER)
