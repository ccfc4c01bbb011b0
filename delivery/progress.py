"""The progress bar of the commands."""

import sys

from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn


def progress_bar() -> Progress:
    """Return a progress bar of bytes, for who sits at a terminal."""
    columns = "{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    return Progress(*columns, disable=not sys.stderr.isatty(), transient=True)
