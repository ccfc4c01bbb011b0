"""The book of tickets: every change of a ticket is one transaction, with the event that tells of it.

The tickets' own table is what makes them durable. A preparation is one step that may be repeated (what it stores is
there whole or not at all), so there is no step to come back to within it, and the order of the queue, which a library
of durable jobs would not keep, is here anyway: DBOS starts the highest priority first, however long others have waited,
and whether there is room for it or not. It would also take 1.4 s of each start, of the five that a ticket may stand
still after a kill.
"""

import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, Row, delete, func, insert, select, update

from delivery.database import writing
from delivery.files.roots import Found
from delivery.tickets.models import OVER, Kind, State
from delivery.tickets.sources import packed, unpacked
from delivery.tickets.tables import artefacts, events, tickets

Ticket = Row[Any]
"""A ticket without its files and their paths, which may be many."""

BRIEF = [column for column in tickets.columns if column.name != "files"]

LIVE = (State.WAITING, State.PREPARING, State.READY)


class Book:
    """All tickets, their events, and what is prepared for them; for any number of threads.

    Parameters
    ----------
    engine
        The database.
    clock
        Returns the seconds since 1970.
    """

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.time) -> None:
        self.engine, self.clock = engine, clock
        self._listeners: list[Callable[[str], None]] = []

    def listen(self, listener: Callable[[str], None]) -> None:
        """Call `listener` with a ticket's name after each of its changes, in the thread that made it."""
        self._listeners.append(listener)

    # What is written

    def add(self, files: Sequence[Found], **values: Any) -> str:
        """Write a new ticket, waiting, and return its name."""
        name = secrets.token_urlsafe(16)
        size = values.pop("size")
        row = {"id": name, "state": State.WAITING, "asked": self.clock(), "size": size, **_contents(files), **values}
        with writing(self.engine) as connection:
            connection.execute(insert(tickets).values(**row))
            self._note(connection, name, {"state": State.WAITING})
        self._told([name])
        return name

    def replace_files(self, name: str, files: Sequence[Found], among: Sequence[State], **values: Any) -> bool:
        """Let a ticket be for these files, and wait; returns whether it was in one of the states `among`."""
        return self.change(name, State.WAITING, among=among, **_contents(files), **values)

    def edit_files(self, name: str, edit: Callable[[list[Found]], tuple[list[Found], Mapping[str, Any]]]) -> bool:
        """Let a waiting ticket be for other files; returns whether it waits.

        Parameters
        ----------
        name
            The ticket.
        edit
            Given its files, returns the new ones, and what else of the ticket they change.
        """
        with writing(self.engine) as connection:
            waiting = tickets.c.id == name, tickets.c.state == State.WAITING
            files = connection.scalar(select(tickets.c.files).where(*waiting))
            if files is None:
                return False
            edited, values = edit(unpacked(files))
            connection.execute(update(tickets).where(*waiting).values(**_contents(edited), **values))
            self._note(connection, name, {"state": State.WAITING, "files": len(edited)})
        self._told([name])
        return True

    def lose_artefact(self, key: str) -> None:
        """Forget an artefact that the store has not any more; those who had it wait for another."""
        with writing(self.engine) as connection:
            connection.execute(delete(artefacts).where(artefacts.c.key == key))
            names = list(connection.scalars(select(tickets.c.id).where(tickets.c.key == key)))
            reason = "the store has lost what was prepared"
            for name in names:
                self.change_in(connection, name, State.WAITING, among=[State.READY], reason=reason)
        self._told(names)

    def change(self, name: str, state: State, *, among: Iterable[State], reason: str = "", **values: Any) -> bool:
        """Bring a ticket from one of the states `among` to another; returns whether it was in one of them."""
        with writing(self.engine) as connection:
            changed = self.change_in(connection, name, state, among=among, reason=reason, **values)
        if changed:
            self._told([name])
        return changed

    def change_in(
        self,
        connection: Connection,
        name: str,
        state: State,
        *,
        among: Iterable[State],
        reason: str = "",
        **values: Any,
    ) -> bool:
        """Do what `change` does as part of a transaction; who opened it calls `told` after its end."""
        chosen = tickets.c.id == name, tickets.c.state.in_(list(among))
        result = connection.execute(update(tickets).where(*chosen).values(state=state, reason=reason, **values))
        if result.rowcount:
            self._note(connection, name, {"state": state, "reason": reason})
        return bool(result.rowcount)

    def progress(self, name: str, done: int, total: int) -> None:
        """Tell how many bytes are done; replaces what was told of that before."""
        with writing(self.engine) as connection:
            connection.execute(delete(events).where(events.c.ticket == name, events.c.progress))
            data = {"state": State.PREPARING, "done": done, "total": total}
            self._note(connection, name, data, progress=True)
        self._told([name])

    def count_download(self, name: str, volume: int) -> None:
        """Count a volume as fetched; the ticket expires once all were, as often as was agreed."""
        with writing(self.engine) as connection:
            row = connection.execute(select(*BRIEF).where(tickets.c.id == name)).one_or_none()
            if row is None or volume >= len(row.downloads):  # forgotten, or prepared anew, while it was sent
                return
            counts = list(row.downloads)
            counts[volume] += 1
            connection.execute(update(tickets).where(tickets.c.id == name).values(downloads=counts))
            if row.most_downloads and min(counts) >= row.most_downloads:
                reason = f"fetched {min(counts)} times, as agreed"
                self.change_in(connection, name, State.EXPIRED, among=[State.READY], reason=reason)
        self._told([name])

    def told(self, names: Iterable[str]) -> None:
        """Tell listeners of changes made in a transaction that has ended."""
        self._told(names)

    def forget(self, before: float) -> None:
        """Drop tickets that were asked for before, and are over."""
        old = select(tickets.c.id).where(tickets.c.state.in_(OVER), tickets.c.asked < before)
        with writing(self.engine) as connection:
            connection.execute(delete(events).where(events.c.ticket.in_(old)))
            connection.execute(delete(tickets).where(tickets.c.id.in_(old)))

    # What is read

    def get(self, name: str) -> Ticket | None:
        """Return a ticket, if there is one of that name."""
        with self.engine.connect() as connection:
            return connection.execute(select(*BRIEF).where(tickets.c.id == name)).one_or_none()

    def files(self, name: str) -> list[Found]:
        """Return the files that a ticket is for."""
        with self.engine.connect() as connection:
            return unpacked(connection.scalar(select(tickets.c.files).where(tickets.c.id == name)) or [])

    def in_state(self, *states: State, owner: str | None = None, latest: int = 0) -> list[Ticket]:
        """Return the tickets in these states in order of their turn; or the `latest` so many, the last one first."""
        chosen = select(*BRIEF).where(tickets.c.state.in_(states))
        if owner is not None:
            chosen = chosen.where(tickets.c.owner == owner)
        order = chosen.order_by(tickets.c.asked.desc()).limit(latest) if latest else chosen.order_by(*IN_TURN)
        with self.engine.connect() as connection:
            return list(connection.execute(order).all())

    def count(self, state: State) -> int:
        """Return how many tickets are in a state."""
        chosen = select(func.count()).select_from(tickets).where(tickets.c.state == state)
        with self.engine.connect() as connection:
            return connection.scalar(chosen) or 0

    def ahead(self, ticket: Ticket) -> int:
        """Return how many wait before this one in its lane."""
        earlier = tickets.c.turn < ticket.turn, tickets.c.kind == ticket.kind, tickets.c.state == State.WAITING
        with self.engine.connect() as connection:
            return connection.scalar(select(func.count()).select_from(tickets).where(*earlier)) or 0

    def artefact(self, key: str) -> Row[Any] | None:
        """Return what is prepared under a key."""
        with self.engine.connect() as connection:
            return connection.execute(select(artefacts).where(artefacts.c.key == key)).one_or_none()

    def events_after(self, name: str, last: int) -> list[tuple[int, Mapping[str, Any]]]:
        """Return the events of a ticket with numbers above `last`, in order."""
        chosen = select(events.c.id, events.c.data).where(events.c.ticket == name, events.c.id > last)
        with self.engine.connect() as connection:
            return [(number, data) for number, data in connection.execute(chosen.order_by(events.c.id))]

    def asked_for(self, owner: str, since: float) -> tuple[int, int]:
        """Return how many tickets somebody has waiting, and the bytes asked for since then."""
        downloads = tickets.c.owner == owner, tickets.c.kind == Kind.DOWNLOAD
        with self.engine.connect() as connection:
            waiting = connection.scalar(
                select(func.count()).select_from(tickets).where(*downloads, tickets.c.state == State.WAITING)
            )
            asked = connection.scalar(
                select(func.coalesce(func.sum(tickets.c.bytes), 0)).where(*downloads, tickets.c.asked > since)
            )
        return int(waiting or 0), int(asked or 0)

    def _note(self, connection: Connection, name: str, data: Mapping[str, Any], *, progress: bool = False) -> None:
        connection.execute(insert(events).values(ticket=name, progress=progress, data=dict(data)))

    def _told(self, names: Iterable[str]) -> None:
        for name in names:
            for listener in self._listeners:
                listener(name)


IN_TURN = (tickets.c.turn, tickets.c.asked, tickets.c.id)


def _contents(files: Sequence[Found]) -> dict[str, Any]:
    return {"files": packed(files), "file_count": len(files), "bytes": sum(found.stamp.size for found in files)}
