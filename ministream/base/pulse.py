"""How often a program says how it is doing."""

import time
from collections.abc import Callable


class Pulse:
    """True from `due` at most once per `interval` seconds: for progress lines in a fast loop."""

    def __init__(self, interval: float = 0.5, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval, self._clock = interval, clock
        self._next = clock() + interval

    def due(self) -> bool:
        """Return whether the interval has passed, and if so begin the next one."""
        now = self._clock()
        if now < self._next:
            return False
        self._next = now + self._interval
        return True
