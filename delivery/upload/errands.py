"""What an intake does by itself, as durable jobs: take files that lie here, and send on what is stored.

A job is known by its upload's name and looks for all it needs in the ledger, so that starting one twice is harmless,
and one that was killed goes on with what is left. Jobs are functions of a module; the parts of the service that they
work with are put here while it runs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from delivery import jobs

SHORTEST, LONGEST = 1.0, 300.0
"""Seconds from a try that failed to the next, and at most."""


class Work(NamedTuple):
    """What is done for an upload: returns why it is to be tried again, or nothing."""

    take: Callable[[str, int], str]
    forward: Callable[[str, int], str]


_at_work: list[Work] = []


@contextmanager
def at_work(database: str, work: Work) -> Iterator[None]:
    """Run jobs until the end of the block, those first that were interrupted."""
    _at_work.append(work)
    try:
        with jobs.running(database, worker="intake"):
            yield
    finally:
        _at_work.clear()


def take(upload: str) -> None:
    """Have a file taken that was prepared by its path."""
    jobs.start(f"take {upload}", _taking, upload)


def forward(upload: str) -> None:
    """Have a stored file sent on."""
    jobs.start(f"forward {upload}", _forwarding, upload)


@jobs.step("take")
def _take(upload: str, attempt: int) -> str:
    return _at_work[0].take(upload, attempt)


@jobs.step("forward")
def _forward(upload: str, attempt: int) -> str:
    return _at_work[0].forward(upload, attempt)


@jobs.job("taking")
def _taking(upload: str) -> None:
    _until_done(lambda attempt: _take(upload, attempt))


@jobs.job("forwarding")
def _forwarding(upload: str) -> None:
    _until_done(lambda attempt: _forward(upload, attempt))


def _until_done(step: Callable[[int], str]) -> None:
    attempt = 1
    while step(attempt):
        jobs.pause(min(SHORTEST * 2 ** min(attempt - 1, 10), LONGEST))
        attempt += 1
