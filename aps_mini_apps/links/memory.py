"""A link within one process: a bounded queue between two threads, and what a link is measured by."""

import itertools
import queue

from aps_mini_apps.frames import Frame
from aps_mini_apps.links._waiting import Patience
from ministream.base.lifecycle import SLICE, StopFlag
from ministream.base.owner import Owner

_numbers = itertools.count(1)


def pair(
    capacity: int, *, stop: StopFlag | None = None, timeout: float | None = None
) -> tuple["MemorySender", "MemoryReceiver"]:
    """Return the two ends of a link that holds `capacity` frames.

    `stop` and `timeout` (seconds; None: never) end the waits of both. Frames pass as they are, uncopied.
    """
    frames: queue.Queue[Frame | None] = queue.Queue(capacity)
    patience, endpoint = Patience(stop, timeout), f"memory://{next(_numbers)}"
    return MemorySender(frames, patience, endpoint), MemoryReceiver(frames, patience, endpoint)


class MemorySender(Owner):
    """The left end; made by `pair`."""

    def __init__(self, frames: "queue.Queue[Frame | None]", patience: Patience, endpoint: str) -> None:
        self._frames = frames
        self._patience = patience
        self.endpoint = endpoint

    def send(self, frame: Frame) -> None:
        """Hand over one frame; wait while the queue is full."""
        self._put(frame)

    def end(self) -> None:
        """Say that the scan is over."""
        self._put(None)

    def close(self) -> None:
        """Nothing is held: frames in the queue belong to the receiver."""

    def _put(self, item: Frame | None) -> None:
        def taken() -> bool:
            try:
                self._frames.put(item, timeout=SLICE)
            except queue.Full:
                return False
            return True

        complaint = f"the receiver took no frame from {self.endpoint} for {self._patience}; is it running?"
        self._patience.wait(taken, complaint)


class MemoryReceiver(Owner):
    """The right end; made by `pair`. It never loses or refuses anything."""

    lost = 0
    refused = 0

    def __init__(self, frames: "queue.Queue[Frame | None]", patience: Patience, endpoint: str) -> None:
        self._frames = frames
        self._patience = patience
        self._endpoint = endpoint
        self._over = False

    def receive(self) -> Frame | None:
        """Return the next frame, or None once the scan is over."""
        if self._over:
            return None
        arrived: list[Frame | None] = []

        def come() -> bool:
            try:
                arrived.append(self._frames.get(timeout=SLICE))
            except queue.Empty:
                return False
            return True

        complaint = f"no frame from {self._endpoint} for {self._patience}; is the sender running?"
        self._patience.wait(come, complaint)
        (frame,) = arrived
        self._over = frame is None
        return frame

    def close(self) -> None:
        """Nothing is held."""
