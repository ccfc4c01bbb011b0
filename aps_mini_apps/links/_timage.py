"""What `push` and `pubsub` have in common: TImage messages on a ZeroMQ socket, ended by `END_OF_SCAN`."""

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from aps_mini_apps.frames import Frame
from aps_mini_apps.links._sequence import SequenceCounter
from aps_mini_apps.links._sockets import Line
from aps_mini_apps.wire import WireError, timage
from ministream.base.log import get_logger
from ministream.base.owner import Owner


class TImageSender(Owner):
    """Encodes frames and queues them on `line`; `peer` is the other end's name in complaints."""

    def __init__(self, line: Line, peer: str) -> None:
        self._line = line
        self._peer = peer
        self._last = "no packet so far"
        self.endpoint = line.endpoint

    def send(self, frame: Frame) -> None:
        """Queue one frame; wait while nobody is there to take it, or the queue is full."""
        self._prepare()
        self._line.send(timage.encode(frame), self._complaint("took no frame"))
        self._last = f"last packet {frame.sequence}"

    def tell(self, event: Mapping[str, Any]) -> None:
        """Let a log event travel with the frames, where the link carries such; it never waits."""

    def end(self) -> None:
        """Say that the scan is over, wait until all that was sent has left, and close."""
        self._prepare()
        self._line.send(timage.END_OF_SCAN, self._complaint("took no frame"))
        self._line.flush(self._complaint("did not take the rest of the scan"))

    def close(self) -> None:
        """Give the port back; without an `end` before, what is queued is dropped."""
        self._line.close()

    def _prepare(self) -> None:
        """Wait for all that must be there before a frame can leave."""

    def _complaint(self, failing: str) -> str:
        patience = self._line.patience
        return f"{self._peer} {failing} from {self.endpoint} for {patience} ({self._last}); is it running?"


class TImageReceiver(Owner):
    """Takes messages from `line` and decodes them in place.

    A malformed message is refused: logged with the reason, counted in `refused`, and the next one is read.
    """

    def __init__(
        self,
        line: Line,
        endpoint: str,
        counter: SequenceCounter,
        *,
        pixel_type: npt.DTypeLike | None = None,
        strict: bool = False,
    ) -> None:
        self._line = line
        self._endpoint = endpoint
        self._counter = counter
        self._pixel_type = pixel_type
        self._strict = strict
        self._over = False
        self.refused = 0

    @property
    def lost(self) -> int:
        """Packets that were sent and never came, as far as their numbers tell."""
        return self._counter.lost

    def receive(self) -> Frame | None:
        """Return the next frame, its pixels a view of the message; None once the scan is over."""
        while not self._over:
            message = self._line.receive(self._complaint())
            if message == timage.END_OF_SCAN:
                self._over = True
                self._counter.finish()
                return None
            try:
                if self._is_said(message):
                    continue
                frame = self._decode(message)
            except WireError as error:
                self.refused += 1
                get_logger().warning(
                    "message refused", endpoint=self._endpoint, reason=str(error), refused=self.refused
                )
            else:
                self._counter.see(frame)
                return frame
        return None

    def close(self) -> None:
        """Disconnect."""
        self._line.close()

    def _is_said(self, message: memoryview) -> bool:  # noqa: ARG002 - for links that carry more than frames
        """Take what is said beside the frames; return whether `message` was that."""
        return False

    def _decode(self, message: memoryview) -> Frame:
        value = timage.decode(message, pixel_type=self._pixel_type, strict=self._strict)
        if not isinstance(value, Frame):
            raise WireError("it holds a reconstructed volume, not a frame")
        return value

    def _complaint(self) -> str:
        waited = self._line.patience
        return f"no frame from {self._endpoint} for {waited} ({self._counter}); is the sender running?"
