"""Server-sent events of a ticket: all that happened to it, then what happens, and signs of life in between.

Events are numbered and kept; a client that comes back says the last number that it saw, and misses nothing. Of
progress only the last is kept. The stream ends with the ticket; upon 204 browsers don't come back.
"""

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from delivery.tickets.book import Book
from delivery.tickets.models import OVER

RETRY = 2000
"""Milliseconds after which a client whose connection broke comes back."""


class Bell:
    """Wakes those who wait for news of a ticket; rung from any thread."""

    def __init__(self) -> None:
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._loop: asyncio.AbstractEventLoop | None = None

    def ring(self, name: str) -> None:
        """Wake who waits for news of the ticket `name`."""
        if self._loop and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake, name)

    @contextmanager
    def heard(self, name: str) -> Iterator[asyncio.Event]:
        """Yield an event that is set with each news."""
        self._loop = asyncio.get_running_loop()
        rung = asyncio.Event()
        self._waiting[name].add(rung)
        try:
            yield rung
        finally:
            self._waiting[name].discard(rung)
            if not self._waiting[name]:
                del self._waiting[name]

    def _wake(self, name: str) -> None:
        for rung in self._waiting.get(name, ()):
            rung.set()


async def stream(book: Book, bell: Bell, name: str, last: int, heartbeat: float) -> AsyncIterator[str]:
    """Yield the events of a ticket that come after the one numbered `last`.

    Parameters
    ----------
    book, bell
        Where events are, and who tells of new ones.
    name, last
        The ticket, and the number of the last event that is known already.
    heartbeat
        Seconds of silence after which a comment is sent.
    """
    yield f"retry: {RETRY}\n\n"
    with bell.heard(name) as rung:
        while True:
            rung.clear()
            for number, data in await asyncio.to_thread(book.events_after, name, last):
                last = number
                yield f"id: {number}\nevent: status\ndata: {json.dumps(dict(data))}\n\n"
                if data["state"] in OVER:
                    return
            try:
                await asyncio.wait_for(rung.wait(), heartbeat)
            except TimeoutError:
                yield ": nothing new\n\n"
