"""How far a scan is, as the log events of its programs tell."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from ministream.base.log import LogLevel

Event = Mapping[str, Any]


class Progress:
    """The latest figures of each program of one scan.

    Events may come from another facility: what is no number counts as 0.
    """

    def __init__(self) -> None:
        self.scan, self.source = "", ""
        self.total = 0
        """Projections that the acquisition has announced; 0: not known."""
        self.files: list[str] = []
        """Files that were written, in their order."""
        self.ended: dict[str, Event] = {}
        """The event `scan ended` of each program, by its name."""
        self._latest: dict[str, Event] = {}

    def take(self, event: Event) -> None:
        """Learn from one event."""
        service = str(event.get("service"))
        match event.get("event"):
            case "progress":
                self._latest[service] = event
            case "scan ended":
                self._latest[service] = self.ended[service] = event
            case "scan started" if service == "daq":
                self.total = int(_number(event, "projections") * max(1.0, _number(event, "repeats")))
                self.scan, self.source = str(event.get("scan", "")), str(event.get("source", ""))
            case "file written":
                self.files.append(str(event.get("path")))

    @property
    def known(self) -> bool:
        """Whether any program has told a figure."""
        return bool(self._latest)

    @property
    def lost(self) -> int:
        """Frames lost: one that the distributor never got is a gap for each worker too, so they are not added up."""
        return int(max((_number(event, "lost") for event in self._latest.values()), default=0))

    @property
    def windows(self) -> int:
        """Windows that every worker has reconstructed."""
        return int(self._least("sirt", "windows"))

    def figures(self) -> dict[str, Any]:
        """Return `sent`, `received`, `reconstructed`, `total`, `rate` (1/s), `lag` (projections) and `residual`."""
        sent, done = int(self._least("daq", "projections")), int(self._least("sirt", "received"))
        return {
            "sent": sent,
            "received": int(self._least("dist", "sent")),
            "reconstructed": done,
            "total": self.total,
            "rate": self._least("sirt", "rate"),
            "lag": max(0, sent - done),
            "residual": max(self._values("sirt", "misfit"), default=math.nan),
        }

    def _least(self, service: str, key: str) -> float:
        """Return the slowest worker's figure: it says how far all are, and their sum would count a projection twice."""
        return min(self._values(service, key), default=0.0)

    def _values(self, service: str, key: str) -> list[float]:
        return [_number(event, key) for name, event in self._latest.items() if name.startswith(service)]


def new_event(service: str, event: str, level: LogLevel = "info", **fields: Any) -> dict[str, Any]:
    """Return a log event of this moment, in the form in which programs log theirs."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"time": now, "level": level, "service": service, "event": event, **fields}


def _number(event: Event, key: str) -> float:
    value = event.get(key, 0)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0
