"""How a program is asked to stop: a signal sets a flag, and whoever waits looks at it.

No handler does work of its own, so nothing is interrupted half-way: waits are cut into slices of `SLICE`
seconds, and a wait that finds the flag set raises `Stopped`, which unwinds the program through its context
managers. A program that was started by another one of ours (`PARENT`) is asked to stop by that one's death, too.
"""

import os
import signal
import time
from types import FrameType
from typing import NoReturn

SLICE = 0.1
"""Seconds between two looks at the flag: short enough for a person, long enough to cost nothing."""

PARENT = "MINISTREAM_PARENT"
"""Environment variable: number of the process that started this one, and without which it is of no use."""


class Stopped(Exception):  # noqa: N818 - a request, not an error
    """The program was asked to stop."""


class StopFlag:
    """Set by SIGINT or SIGTERM (once installed) or by `request`; never reset.

    A flag `within` another one is for a part of what that one stops: it is set with it, and can be set alone.
    """

    def __init__(self, within: "StopFlag | None" = None) -> None:
        self._reason = ""
        self._parent = 0
        self._within = within

    def __bool__(self) -> bool:
        return bool(self._reason) or bool(self._within)

    def request(self, reason: str) -> None:
        """Ask the program to stop; the first reason given is kept."""
        self._reason = self._reason or reason

    def raise_if_set(self) -> None:
        """Raise `Stopped` with the reason, if a stop has been requested."""
        if self._within is not None:
            self._within.raise_if_set()
        if self._parent and os.getppid() != self._parent:  # an orphan is given to another process
            self.request("the program that started this one has ended")
        if self._reason:
            raise Stopped(self._reason)

    def wait(self) -> NoReturn:
        """Wait until a stop is requested, and raise `Stopped`."""
        while True:
            self.raise_if_set()
            time.sleep(SLICE)

    def install(self) -> "StopFlag":
        """Let SIGINT, SIGTERM and the death of `PARENT`'s process set this flag (main thread only)."""
        self._parent = int(os.environ.get(PARENT, "0"))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        return self

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.request(signal.Signals(number).name)
