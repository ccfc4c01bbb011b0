"""What a person sees while a scan runs: a table that is kept up to date, or plain lines where there is no screen."""

from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from aps_mini_apps.report.progress import Progress, new_event
from ministream.base import log
from ministream.base.pulse import Pulse

PLAIN_INTERVAL = 2.0
"""Seconds between progress lines where there is no screen."""


class Display:
    """Shows log lines as they come and, below them, how far the scan is.

    Parameters
    ----------
    console
        Where to.
    style
        Form of the lines.
    service
        Name under which the progress lines are logged.
    """

    def __init__(self, console: Console, *, style: log.LogFormat, service: str) -> None:
        self.progress = Progress()
        self._console, self._style, self._service = console, style, service
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

    def show(self, event: dict[str, Any]) -> None:
        """Take one log event: progress moves the table, everything else is a line."""
        self.progress.take(event)
        if event.get("event") != "progress":
            self._line(event)
        self.refresh()

    def refresh(self) -> None:
        """Bring the table up to date."""
        if self._live:
            self._live.update(self._table())
        elif self.progress.known and self._pulse.due():
            self._line(new_event(self._service, "progress", **self.progress.figures()))

    def _line(self, event: dict[str, Any]) -> None:
        text = log.format_json(event) if self._style == "json" else log.format_text(event)
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _table(self) -> Table:
        figures = self.progress.figures()
        table = Table(title="Mini-Stream", title_justify="left", box=None, padding=(0, 2))
        for name in ("sent", "received", "reconstructed", "rate", "lag", "residual"):
            table.add_column(name, justify="right")
        total = f" / {figures['total']}" if figures["total"] else ""
        table.add_row(
            f"{figures['sent']}{total}",
            str(figures["received"]),
            str(figures["reconstructed"]),
            f"{figures['rate']:.1f}/s",
            str(figures["lag"]),
            f"{figures['residual']:.4f}",
        )
        return table
