"""PUSH/PULL: one program of ours feeds another.

The left end listens, the right one connects. Both queues are bounded, so that a slow reader holds the sender
back; nothing is dropped while both ends live. ZeroMQ would deal frames out among several readers: the sender
watches its connections and ends with an error when a second reader comes.

Beside the frames travel notes: log events for the other end. Telling one never waits: it leaves at once where there is
room, else before the next frame, which waits for both. A sender that is left by an exception says why in its last
message, so that whoever waits for its frames ends, too, and knows the reason.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import zmq

from aps_mini_apps.links._sequence import SequenceCounter
from aps_mini_apps.links._sockets import LARGEST_REQUEST, SLICE_MS, Line
from aps_mini_apps.links._timage import TImageReceiver, TImageSender
from aps_mini_apps.links._waiting import Patience
from aps_mini_apps.wire import WireError, note
from ministream.base.errors import UserError
from ministream.base.lifecycle import StopFlag, Stopped

QUEUE_FRAMES = 16
"""Frames held at each end: 16 of 2048 x 2048 uint16 are 128 MiB."""

QUEUE_NOTES = 64
"""Notes held for a moment with room; the oldest goes when one more comes."""

FAREWELL = 8.0
"""Seconds that the last message of a sender that fails, and the frames before it, get to leave; a child has 10."""


class PeerStoppedError(UserError):
    """The sender stopped before the scan had ended: the text names it, and its reason."""


class PushSender(TImageSender):
    """Listens for one `PullReceiver` and sends it frames; the first waits until it is there.

    Parameters
    ----------
    bind_endpoint
        tcp://HOST:PORT, with `*` for every address of this machine, or for any free port.
    queue_frames
        Frames that may wait at this end.
    stop, timeout
        What ends a wait: the flag, or so many seconds without a receiver (None: never).

    Raises
    ------
    UserError
        If it cannot listen there; on `send`, if a second receiver has connected.
    LinkTimeoutError, Stopped
        On `send` and `end`.

    Attributes
    ----------
    untold
        Notes that were dropped, because there was no room for too long or they were too large.
    """

    def __init__(
        self,
        bind_endpoint: str,
        *,
        queue_frames: int = QUEUE_FRAMES,
        stop: StopFlag | None = None,
        timeout: float | None = None,
    ) -> None:
        line = Line(
            zmq.PUSH,
            Patience(stop, timeout),
            high_water_mark=queue_frames,
            largest=LARGEST_REQUEST,
            watched=True,
        )
        super().__init__(line.bind(bind_endpoint), "the receiver")
        self._notes: deque[bytes] = deque()
        self.untold = 0

    def tell(self, event: Mapping[str, Any]) -> None:
        """Let a log event travel to the other end: now if there is room, else before the next frame."""
        try:
            self._notes.append(note.encode(note.Note.from_event(event)))
        except WireError:
            self.untold += 1
        if len(self._notes) > QUEUE_NOTES:
            self._notes.popleft()
            self.untold += 1
        if not self._line.socket.closed:
            self._send_notes(zmq.NOBLOCK)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # whoever took a frame a moment ago may not have been announced yet
        if error is not None and not self._line.socket.closed and self._line.connections(SLICE_MS):
            self._say_farewell(error)
        self.close()

    def _say_farewell(self, error: BaseException) -> None:
        """Tell who is connected why no more will come."""
        known = isinstance(error, UserError | Stopped)
        reason = str(error) if known else f"an internal fault ({type(error).__name__})"
        self._notes.append(note.encode(note.farewell(reason)))
        deadline = time.monotonic() + FAREWELL
        while not self._send_notes() and time.monotonic() < deadline:
            pass
        self._line.close(max(0.0, deadline - time.monotonic()))

    def _send_notes(self, flags: int = 0) -> bool:
        """Send the notes that wait, in their order; return whether all have left."""
        try:
            while self._notes:
                self._line.socket.send(self._notes[0], flags)
                self._notes.popleft()
        except zmq.Again:
            return False
        return True

    def _prepare(self) -> None:
        if self._line.connections() > 1:
            raise UserError(
                f"a second receiver has connected to {self.endpoint}: each would get half of the frames; "
                "start one receiver only"
            )
        complaint = self._complaint("took no frame")
        self._line.patience.wait(self._send_notes, complaint, alive=lambda: self._line.connections() > 0)


class PullReceiver(TImageReceiver):
    """Connects to a `PushSender` and takes its frames; only messages with our checksum are accepted.

    Parameters
    ----------
    connect_endpoint
        tcp://HOST:PORT of the sender, which need not be there yet.
    queue_frames
        Frames that may wait at this end.
    peer
        What the sender is called, should it stop early.
    on_note
        Called with each note, in its place among the frames. A `WireError` that it raises refuses the note.
    stop, timeout
        What ends a wait: the flag, or so many seconds without a message (None: never).

    Raises
    ------
    UserError
        If the endpoint is no address.
    LinkTimeoutError, PeerStoppedError, Stopped
        On `receive`.
    """

    def __init__(
        self,
        connect_endpoint: str,
        *,
        queue_frames: int = QUEUE_FRAMES,
        peer: str = "the sender",
        on_note: Callable[[note.Note], None] | None = None,
        stop: StopFlag | None = None,
        timeout: float | None = None,
    ) -> None:
        line = Line(zmq.PULL, Patience(stop, timeout), high_water_mark=queue_frames)
        line.connect(connect_endpoint)
        super().__init__(line, connect_endpoint, SequenceCounter(), strict=True)
        self._peer, self._on_note = peer, on_note

    def _is_said(self, message: memoryview) -> bool:
        if not note.is_note(message):
            return False
        said = note.decode(message)
        if isinstance(said, note.Farewell):
            self._line.patience.look()  # when both ends are asked to stop, each says so for itself
            raise PeerStoppedError(f"{self._peer} stopped: {said.reason}")
        if self._on_note is not None:
            self._on_note(said)
        return True
