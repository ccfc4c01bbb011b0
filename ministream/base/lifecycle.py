"""How a program is asked to stop: a signal sets a flag, and whoever waits looks at it.

No handler does work of its own, so nothing is interrupted half-way: waits are cut into slices of `SLICE`
seconds, and a wait that finds the flag set raises `Stopped`, which unwinds the program through its context
managers.
"""

import signal
from types import FrameType

SLICE = 0.1
"""Seconds between two looks at the flag: short enough for a person, long enough to cost nothing."""


class Stopped(Exception):  # noqa: N818 - a request, not an error
    """The program was asked to stop."""


class StopFlag:
    """Set by SIGINT or SIGTERM (once installed) or by `request`; never reset."""

    def __init__(self) -> None:
        self._reason = ""

    def __bool__(self) -> bool:
        return bool(self._reason)

    def request(self, reason: str) -> None:
        """Ask the program to stop; the first reason given is kept."""
        self._reason = self._reason or reason

    def raise_if_set(self) -> None:
        """Raise `Stopped` with the reason, if a stop has been requested."""
        if self._reason:
            raise Stopped(self._reason)

    def install(self) -> "StopFlag":
        """Let SIGINT and SIGTERM set this flag (main thread only)."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        return self

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.request(signal.Signals(number).name)
