"""What a person sees while a scan runs: a table that is kept up to date, or plain lines where there is no screen."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from ministream.base import log
from ministream.base.pulse import Pulse

PLAIN_INTERVAL = 2.0
"""Seconds between progress lines where there is no screen."""


class Display:
    """Shows log lines as they come and, below them, how far the scan is."""

    def __init__(self, console: Console, *, style: log.LogFormat) -> None:
        self._console, self._style = console, style
        self._total = 0
        self._progress: dict[str, Mapping[str, Any]] = {}
        self._live = Live(console=console, refresh_per_second=8, transient=True) if console.is_terminal else None
        self._pulse = Pulse(PLAIN_INTERVAL)

    def __enter__(self) -> Self:
        if self._live:
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.__exit__(kind, error, trace)

    def show(self, service: str, event: dict[str, Any]) -> None:
        """Take one log event of `service`: progress moves the table, everything else is a line."""
        if event.get("event") == "progress":
            self._progress[service] = event
        else:
            if service == "daq" and event.get("event") == "scan started":
                self._total = int(event.get("projections", 0)) * int(event.get("repeats", 1))
            if event.get("event") == "scan ended":
                self._progress[service] = event
            self._line(event)
        self.refresh()

    def refresh(self) -> None:
        """Bring the table up to date."""
        if self._live:
            self._live.update(self._table())
        elif self._progress and self._pulse.due():
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
            self._line({"time": stamp, "level": "info", "service": "run", "event": "progress", **self._summary()})

    def _line(self, event: dict[str, Any]) -> None:
        text = log.format_json(event) if self._style == "json" else log.format_text(event)
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _count(self, service: str, key: str) -> int:
        """Sum over the workers would count a projection twice: the slowest one says how far all are."""
        values = [int(p.get(key, 0)) for name, p in self._progress.items() if name.startswith(service)]
        return min(values, default=0)

    def _summary(self) -> dict[str, Any]:
        sirt = next((p for name, p in self._progress.items() if name.startswith("sirt")), {})
        sent, done = self._count("daq", "projections"), self._count("sirt", "received")
        return {
            "sent": sent,
            "received": self._count("dist", "sent"),
            "reconstructed": done,
            "total": self._total,
            "rate": sirt.get("rate", 0.0),
            "lag": max(0, sent - done),
            "residual": sirt.get("misfit", float("nan")),
        }

    def _table(self) -> Table:
        summary = self._summary()
        table = Table(title="Mini-Stream", title_justify="left", box=None, padding=(0, 2))
        for name in ("sent", "received", "reconstructed", "rate", "lag", "residual"):
            table.add_column(name, justify="right")
        total = f" / {self._total}" if self._total else ""
        table.add_row(
            f"{summary['sent']}{total}",
            str(summary["received"]),
            str(summary["reconstructed"]),
            f"{summary['rate']:.1f}/s",
            str(summary["lag"]),
            f"{summary['residual']:.4f}",
        )
        return table
