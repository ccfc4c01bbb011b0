"""The runs of a receiver: one at a time, each with its state, its events and its figures.

    idle -> waiting -> running -> complete | failed
              `------------------------^

A run is `waiting` until its first projection is there. When one has ended, its state stays to be asked for until the
next begins.
"""

import threading
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from aps_mini_apps.report.progress import Progress
from ministream.base.errors import UserError
from ministream.base.lifecycle import StopFlag


class State(StrEnum):
    """What the receiver is doing."""

    IDLE = "idle"
    WAITING = "waiting"
    RUNNING = "running"
    COMPLETE = "complete"
    FAILED = "failed"


LIVE = (State.WAITING, State.RUNNING)

ENDED = "run ended"
"""Name of the final event."""


class BusyError(UserError):
    """Another run is under way, or the service is about to end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a client asks for.

    Attributes
    ----------
    listeners
        `host:port` for worker 0, 1, …
    options
        Of the reconstruction, by their names in the section `sirt`.
    tunnel
        What the client knows of the way, for the report.
    """

    listeners: Sequence[str]
    options: Mapping[str, Any]
    tunnel: Mapping[str, Any]


class Run:
    """One scan at the receiver; any thread may look at it, the main thread alone moves it on."""

    def __init__(self, order: Order, keep: int, service: StopFlag) -> None:
        self.id = uuid.uuid4().hex
        self.order = order
        self.stop = StopFlag(within=service)
        """Asks this run, not the service, to end."""
        self.progress = Progress()
        self.state, self.reason = State.WAITING, ""
        self._lock = threading.Lock()
        self._events: deque[dict[str, Any]] = deque(maxlen=keep)
        self._count = 0

    def record(self, event: Mapping[str, Any]) -> None:
        """Keep an event for those who follow; the oldest go when there are too many."""
        with self._lock:
            self._append(event)
            if self.state is State.WAITING and event.get("event") == "projector ready":
                self.state = State.RUNNING

    def end(self, event: Mapping[str, Any]) -> None:
        """Record the final event, whose `state` and `reason` become the run's."""
        with self._lock:
            self.state, self.reason = State(event["state"]), str(event["reason"])
            self._append(event)

    def _append(self, event: Mapping[str, Any]) -> None:
        self._count += 1
        self.progress.take(event)
        self._events.append({**event, "n": self._count})

    def after(self, number: int) -> tuple[list[dict[str, Any]], bool]:
        """Return the events that are kept and come after the one of that number, and whether no more will come."""
        with self._lock:
            if self._count <= number:
                return [], self.state not in LIVE
            return [event for event in self._events if event["n"] > number], self.state not in LIVE

    def status(self) -> dict[str, Any]:
        """Return what there is to know of it."""
        with self._lock:
            progress = self.progress
            return {
                "state": self.state.value,
                "run": self.id,
                "scan": progress.scan,
                "reason": self.reason,
                **{name: value if value == value else None for name, value in progress.figures().items()},
                "windows": progress.windows,
                "lost": progress.lost,
                "files": list(progress.files),
            }


class Desk:
    """Where clients hand runs in, and the main thread takes them from."""

    def __init__(self, keep: int, service: StopFlag) -> None:
        self._keep, self._service = keep, service
        self._lock = threading.Condition()
        self._run: Run | None = None
        self._taken = True
        self._closed = ""
        self.ended = {State.COMPLETE: 0, State.FAILED: 0}
        """Runs that have ended, by how they did."""

    @property
    def run(self) -> Run | None:
        """The run that is under way, or else the last one."""
        return self._run

    @property
    def closed(self) -> bool:
        """Whether the service is about to end."""
        return bool(self._closed)

    def submit(self, order: Order) -> Run:
        """Begin a run.

        Raises
        ------
        BusyError
            If one is under way, or the service is about to end.
        """
        with self._lock:
            if self._closed:
                raise BusyError(f"the receiver is about to end ({self._closed}): ask again when it is back")
            if self._run is not None and self._run.state in LIVE:
                raise BusyError(f"run {self._run.id} is under way: wait for its end, or stop it")
            self._run, self._taken = Run(order, self._keep, self._service), False
            self._lock.notify()
            return self._run

    def take(self, patience: float) -> Run | None:
        """Return a run that was handed in and not yet taken, if one comes within `patience` seconds."""
        with self._lock:
            self._lock.wait_for(lambda: not self._taken, patience)
            run, self._taken = (None if self._taken else self._run), True
            return run

    def find(self, number: str) -> Run:
        """Return the run of that id.

        Raises
        ------
        KeyError
            If this receiver, since it was started, has had none, or a newer one.
        """
        run = self._run
        if run is None or run.id != number:
            raise KeyError(number)
        return run

    def close(self, reason: str) -> Run | None:
        """Take no more runs; return one that was handed in and will not be taken."""
        with self._lock:
            self._closed = reason
            return None if self._taken else self._run

    def status(self) -> dict[str, Any]:
        """Return the state of the service and of the run that is under way, or else of the last one."""
        run = self._run
        return run.status() if run else {"state": State.IDLE.value, "run": None, "reason": "", "files": []}
