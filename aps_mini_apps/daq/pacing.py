"""When the projections leave: by an absolute schedule, so that no delay adds up to a drift.

Flats and darks leave at once. A projection that is late leaves at once too, and the schedule stands: after a
stall the frames follow each other as fast as the link takes them until they are on time again, as those of a
detector do that goes on exposing into its buffer.
"""

import math
import time
from collections.abc import Callable

from aps_mini_apps.frames import Frame, FrameKind
from ministream.base.lifecycle import SLICE, StopFlag


class Pacer:
    """Waits until a frame is due.

    Parameters
    ----------
    interval
        Seconds from projection to projection; 0 waits for none.
    per_pass
        Number of projections in one pass over the scan.
    pause
        Seconds to wait between two passes; the schedule starts anew after each pause.
    stop
        Looked at before every frame and while waiting.
    clock, sleep
        Monotonic seconds, and how to let some pass.
    """

    def __init__(
        self,
        interval: float,
        *,
        per_pass: float = math.inf,
        pause: float = 0.0,
        stop: StopFlag | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._interval, self._per_pass, self._pause = interval, per_pass, pause
        self._stop = StopFlag() if stop is None else stop  # an unset flag is false
        self._clock, self._sleep = clock, sleep
        self._origin: float | None = None  # when projection 0 of the schedule was due
        self._released = 0  # projections since then

    def wait(self, frame: Frame) -> None:
        """Return when `frame` is due.

        Raises
        ------
        Stopped
            If the program was asked to stop.
        """
        self._stop.raise_if_set()
        if frame.kind is not FrameKind.PROJECTION:
            return
        if self._origin is None:
            self._origin = self._clock()
        elif self._pause and self._released == self._per_pass:
            self._origin, self._released = self._clock() + self._pause, 0
        self._wait_until(self._origin + self._released * self._interval)
        self._released += 1

    def _wait_until(self, due: float) -> None:
        while (left := due - self._clock()) > 0:
            self._stop.raise_if_set()
            self._sleep(min(left, SLICE))
