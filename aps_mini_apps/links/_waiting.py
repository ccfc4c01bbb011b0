"""Waiting for the other end: in slices, so that a stop is seen at once, and not for ever unless asked to."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from aps_mini_apps.links import LinkTimeoutError
from ministream.base.lifecycle import SLICE, StopFlag


@dataclass(frozen=True, slots=True)
class Patience:
    """What ends a wait early: the flag `stop`, or `timeout` seconds of silence (None: wait for ever)."""

    stop: StopFlag | None = None
    timeout: float | None = None

    def wait(self, ready: Callable[[], bool], complaint: str, *, alive: Callable[[], bool] = lambda: False) -> None:
        """Call `ready`, which itself waits for `SLICE` seconds at most, until it returns True.

        While `alive` says that the other end is there, it is slow and not silent: its time begins anew. Whatever came
        while this process itself was stopped is seen by a last look, after the time is over.

        Raises
        ------
        Stopped
            If the flag was set.
        LinkTimeoutError
            With the text `complaint`, if the time is over.
        """
        deadline, last_look = time.monotonic() + (self.timeout or 0.0), False
        self.look()
        while not ready():
            self.look()
            if self.timeout is None or time.monotonic() < deadline - SLICE:
                continue
            if alive():
                deadline, last_look = time.monotonic() + self.timeout, False
            elif last_look:
                raise LinkTimeoutError(complaint)
            else:
                last_look = True

    def look(self) -> None:
        """Raise `Stopped` if the flag was set."""
        if self.stop is not None:
            self.stop.raise_if_set()

    def __str__(self) -> str:
        return "ever" if self.timeout is None else f"{self.timeout:g} s"
