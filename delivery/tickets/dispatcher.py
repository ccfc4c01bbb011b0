"""The dispatcher: lets tickets in when it is their turn, and out when their time is over.

One thread decides (`turn`), a few prepare. Only the thread that decides begins preparations and drops artefacts, so the
limits of both need no lock; several services on one database are not meant.
"""

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sqlalchemy import Connection, delete, exists, func, insert, select

from delivery.database import writing
from delivery.files.version import SourceChanged
from delivery.tickets.admission import Held, Waiting, admit
from delivery.tickets.book import BRIEF, IN_TURN, Book, Ticket
from delivery.tickets.models import OVER, Kind, State
from delivery.tickets.shelf import Shelf
from delivery.tickets.sources import key_of, look_again, room_for
from delivery.tickets.tables import artefacts, tickets
from ministream.base.errors import UserError
from ministream.base.log import get_logger
from ministream.base.pulse import Pulse

LOOK = 1.0
"""Seconds between two looks at the clock, when nothing else happens."""

TIDY = 600.0
"""Seconds between two looks for tickets that are to be forgotten."""

ATTEMPTS = 3
"""Preparations of a ticket that may fail for another reason than its files' change."""

RETRY = 2.0
"""Seconds until a ticket whose files change, or whose store fails, is tried again; times the attempts."""


_first = tickets.alias("first")
_COME_TRUE = (_first.c.state == State.DONE) | _first.c.expires.is_not(None)
_COME_TO_NOTHING = _first.c.state.in_(OVER), ~_COME_TRUE
_NOT_HELD_BACK = tickets.c.after.is_(None) | exists().where(_first.c.id == tickets.c.after, _COME_TRUE)


class Cancelled(Exception):  # noqa: N818 - a request, not an error
    """The ticket is wanted no more."""


class Dispatcher:
    """Runs the queue until it is told to stop.

    Parameters
    ----------
    book, shelf
        Tickets and artefacts.
    preparations, deletions
        How many of each run at a time.
    patience
        Seconds that a ticket may wait whose files changed.
    memory
        Seconds for which tickets that are over are remembered.
    forget
        Called with paths that have been deleted.
    """

    def __init__(
        self,
        book: Book,
        shelf: Shelf,
        *,
        preparations: int,
        deletions: int,
        patience: float,
        memory: float,
        forget: Callable[[list[str]], None],
    ) -> None:
        self._book, self._shelf, self._forget = book, shelf, forget
        self._limits = {Kind.DOWNLOAD: preparations, Kind.DELETION: deletions}
        self._patience, self._memory = patience, memory
        self._pool = ThreadPoolExecutor(preparations + deletions, thread_name_prefix="preparation")
        self._running: dict[str, Ticket] = {}
        self._promises: dict[str, float] = {}
        self._tidying = Pulse(TIDY)
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="dispatcher")

    def start(self) -> None:
        """Take up what was left when the service ended, however it did, and go on."""
        with self._book.engine.connect() as connection:
            known = list(connection.scalars(select(artefacts.c.key)))
        self._shelf.tidy(known)
        for ticket in self._book.in_state(State.PREPARING):
            self._book.change(ticket.id, State.WAITING, among=[State.PREPARING], reason="the service was started anew")
        self._book.listen(lambda _name: self._wake.set())
        self._thread.start()

    def stop(self) -> None:
        """End; what is being prepared waits again, and is first in turn when the service is started anew."""
        self._stopping.set()
        self._wake.set()
        self._thread.join()
        self._pool.shutdown()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                self.turn(self._book.clock())
            except Exception:
                get_logger().exception("internal fault of the dispatcher: please report this")
            self._wake.wait(LOOK)

    def turn(self, now: float) -> None:
        """Do what is due: let tickets out, drop what nobody wants, serve what is there already, let tickets in."""
        with writing(self._book.engine) as connection:
            changed = [*self._expire(connection, now), *self._serve_ready(connection, now)]
        if changed:
            self._book.told(changed)
        if self._tidying.due():
            self._book.forget(now - self._memory)
        self._drop_unwanted()
        waiting = self._eligible(now)
        for ticket in self._admit_downloads(waiting, now) + self._admit_deletions(waiting):
            self._begin(ticket)

    # Out

    def _expire(self, connection: Connection, now: float) -> Iterable[str]:
        """End tickets whose time is over, and those that wait for one that came to nothing."""
        columns = tickets.c.id, tickets.c.state
        ready = select(*columns).where(tickets.c.state == State.READY, tickets.c.expires <= now)
        late = select(*columns).where(tickets.c.state == State.WAITING, tickets.c.wait_until <= now)
        for name, state in connection.execute(ready.union_all(late)).all():
            reason = "its time is over" if state == State.READY else "it waited longer than it was to"
            if self._book.change_in(connection, name, State.EXPIRED, among=[state], reason=reason):
                yield name
        linked = select(tickets.c.id, _first.c.state).where(tickets.c.after == _first.c.id, *_COME_TO_NOTHING)
        for name, state in connection.execute(linked.where(tickets.c.state == State.WAITING)).all():
            reason = f"the ticket before it is {state}"
            if self._book.change_in(connection, name, State.FAILED, among=[State.WAITING], reason=reason):
                yield name

    def _drop_unwanted(self) -> None:
        """Drop artefacts that no ticket is ready for, unless somebody is fetching them."""
        wanted = exists().where(tickets.c.key == artefacts.c.key, tickets.c.state == State.READY)
        with self._book.engine.connect() as connection:
            unwanted = connection.execute(select(artefacts).where(~wanted)).all()
        for row in unwanted:
            if self._shelf.is_fetched(row.key):
                continue
            try:
                self._shelf.drop(row.key, len(row.volumes) if row.size else 0, row.then)
            except UserError as error:
                get_logger().warning("cannot drop an artefact; tried again", key=row.key, reason=str(error))
                continue
            with writing(self._book.engine) as connection:
                connection.execute(delete(artefacts).where(artefacts.c.key == row.key, ~wanted))

    # In

    def _eligible(self, now: float) -> list[Ticket]:
        """Return those that may begin, in order of their turn."""
        may_begin = tickets.c.state == State.WAITING, tickets.c.not_before <= now, _NOT_HELD_BACK
        with self._book.engine.connect() as connection:
            waiting = connection.execute(select(*BRIEF).where(*may_begin).order_by(*IN_TURN)).all()
        return [ticket for ticket in waiting if ticket.id not in self._running]

    def _serve_ready(self, connection: Connection, now: float) -> Iterable[str]:
        """Let those that wait for what is there already have it."""
        columns = tickets.c.id, tickets.c.keep, artefacts.c.volumes
        there = tickets.c.key == artefacts.c.key, tickets.c.kind == Kind.DOWNLOAD, tickets.c.state == State.WAITING
        for name, keep, volumes in connection.execute(select(*columns).where(*there, _NOT_HELD_BACK)).all():
            values = {"expires": now + keep, "downloads": [0] * len(volumes)}
            if self._book.change_in(connection, name, State.READY, among=[State.WAITING], **values):
                yield name

    def _admit_downloads(self, waiting: list[Ticket], now: float) -> list[Ticket]:
        under_way = self._under_way(Kind.DOWNLOAD)
        stored = self._stored()  # after what is under way: what ends meanwhile is stored
        taken = {ticket.key for ticket in under_way} | stored.keys()
        queue: dict[str, Ticket] = {}
        for ticket in waiting:
            if ticket.kind == Kind.DOWNLOAD and ticket.key not in taken:  # who asks for the same waits for the first
                taken.add(ticket.key)
                queue[ticket.id] = ticket
        held = [*stored.values(), *(Held(ticket.size, now + ticket.keep) for ticket in under_way)]
        result = admit(
            (Waiting(ticket.id, ticket.size, ticket.keep) for ticket in queue.values()),
            held,
            capacity=self._shelf.capacity(sum(item.size for item in stored.values())),
            slots=self._limits[Kind.DOWNLOAD] - len(under_way),
            now=now,
            promises={name: when for name, when in self._promises.items() if name in queue},
        )
        self._promises = result.promises
        return [queue[name] for name in result.admitted]

    def _admit_deletions(self, waiting: list[Ticket]) -> list[Ticket]:
        free = self._limits[Kind.DELETION] - len(self._under_way(Kind.DELETION))
        return [ticket for ticket in waiting if ticket.kind == Kind.DELETION][: max(free, 0)]

    def _under_way(self, kind: Kind) -> list[Ticket]:
        """Return what is worked on, also if it was cancelled a moment ago."""
        return [ticket for ticket in list(self._running.values()) if ticket.kind == kind]

    def _stored(self) -> dict[str, Held]:
        """Return the artefacts by their keys; what nobody wants leaves the store as soon as nobody fetches it."""
        until = func.coalesce(func.max(tickets.c.expires), 0.0)
        ready = (tickets.c.key == artefacts.c.key) & (tickets.c.state == State.READY)
        rows = select(artefacts.c.key, artefacts.c.size, until).outerjoin(tickets, ready)
        with self._book.engine.connect() as connection:
            found = connection.execute(rows.group_by(artefacts.c.key, artefacts.c.size)).all()
        return {key: Held(size, when) for key, size, when in found}

    # What is done for one ticket

    def _begin(self, ticket: Ticket) -> None:
        if self._book.change(ticket.id, State.PREPARING, among=[State.WAITING]):
            self._running[ticket.id] = ticket
            self._pool.submit(self._do, ticket)

    def _do(self, ticket: Ticket) -> None:
        work = self._delete if ticket.kind == Kind.DELETION else self._prepare
        try:
            work(ticket)
        except Cancelled:
            self._book.change(ticket.id, State.WAITING, among=[State.PREPARING], reason="the service stopped")
        except SourceChanged as error:
            self._again(ticket, f"prepared anew: {error}")
        except UserError as error:
            failed = ticket.attempts + 1 >= ATTEMPTS
            self._again(ticket, str(error), State.FAILED if failed else State.WAITING)
        except BaseException:  # a panic of a library that is not Python's is no Exception
            get_logger().exception("internal fault: please report this", ticket=ticket.id)
            self._again(ticket, "internal fault; the service's log says more", State.FAILED)
        finally:
            del self._running[ticket.id]
            self._wake.set()

    def _prepare(self, ticket: Ticket) -> None:
        files = self._book.files(ticket.id)
        look = look_again(self._shelf.root, files)
        if look.missing:
            self._lost(ticket, look.missing)
            return
        if look.changed:
            self.requeue(ticket, look.files, among=[State.PREPARING], reason="its files changed while it waited")
            return
        watch = _Watch(self._book, ticket, self._stopping)
        volumes = self._shelf.prepare(ticket.key, files, ticket.volume, watch, copy=ticket.prepare)
        self._made(ticket, volumes)

    def _made(self, ticket: Ticket, volumes: list[dict[str, Any]]) -> None:
        size = sum(volume["length"] for volume in volumes) if ticket.prepare else 0
        values = {"expires": self._book.clock() + ticket.keep, "downloads": [0] * len(volumes)}
        with writing(self._book.engine) as connection:
            row = {"key": ticket.key, "size": size, "volumes": volumes, "then": ticket.then}
            connection.execute(insert(artefacts).values(**row))
            self._book.change_in(connection, ticket.id, State.READY, among=[State.PREPARING], **values)
        self._book.told([ticket.id])

    def _delete(self, ticket: Ticket) -> None:
        files = self._book.files(ticket.id)
        try:
            for found in files:
                self._shelf.root.remove(found.path, found.stamp)
        except SourceChanged as error:
            reason = f"{error}; nothing that changed is deleted unasked"
            self._book.change(ticket.id, State.FAILED, among=[State.PREPARING], reason=reason)
            return
        self._forget([found.path for found in files])
        self._book.change(ticket.id, State.DONE, among=[State.PREPARING], reason=f"{len(files)} files deleted")

    def requeue(self, ticket: Ticket, files: Any, *, among: list[State], reason: str) -> bool:
        """Let a ticket wait anew, for the present versions of its files."""
        key = key_of(files, prepare=ticket.prepare, volume=ticket.volume, then=ticket.then)
        size = room_for(files) if ticket.prepare else 0
        wait_until = max(ticket.wait_until, self._book.clock() + self._patience)
        values = {"key": key, "size": size, "wait_until": wait_until, "reason": reason}
        return self._book.replace_files(ticket.id, files, among, **values)

    def _lost(self, ticket: Ticket, missing: list[str]) -> None:
        reason = f"{len(missing)} of its files have been deleted"
        self._book.change(ticket.id, State.GONE, among=[State.PREPARING], reason=reason, missing=missing)

    def _again(self, ticket: Ticket, reason: str, state: State = State.WAITING) -> None:
        attempts = ticket.attempts + 1
        when = self._book.clock() + RETRY * min(attempts, 10)
        values = {"attempts": attempts, "not_before": when}
        self._book.change(ticket.id, state, among=[State.PREPARING], reason=reason, **values)


class _Watch:
    """Tells how a preparation goes on, and ends it when the ticket is cancelled or the service stops."""

    def __init__(self, book: Book, ticket: Ticket, stopping: threading.Event) -> None:
        self._book, self._ticket, self._stopping = book, ticket, stopping
        self._done = 0
        self._pulse = Pulse(interval=0.5, clock=time.monotonic)

    def __call__(self, read: int) -> None:
        self._done += read
        if self._stopping.is_set():
            raise Cancelled
        if self._pulse.due():
            now = self._book.get(self._ticket.id)
            if now is None or now.state != State.PREPARING:
                raise Cancelled
            self._book.progress(self._ticket.id, self._done, self._ticket.bytes)
