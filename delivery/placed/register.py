"""What a site knows: its files and their states, what it has to tell the other site, and messages set aside.

Each method is one transaction, and a repetition of it changes nothing.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Float,
    Index,
    Integer,
    LargeBinary,
    Row,
    String,
    Table,
    delete,
    func,
    insert,
    select,
    update,
)

from delivery.database import metadata, upsert, writing
from delivery.placed.messages import File, Have, Message, Offer, Poison, encode
from delivery.placed.rules import Place, Site

SHORTEST_PAUSE, LONGEST_PAUSE = 2.0, 300.0
"""Seconds until an offer that was not answered, or a fetch that failed, is tried again: doubled each time."""

KEPT = 4096
"""Bytes of a message that is set aside: the longest that a site could have meant, and what shows what it is."""

PAGE = 500
"""Rows read at a time."""

ANSWERED = "answered"
"""Kind of an offer in the outbox that the other site has answered: to be made sure of, and not sent meanwhile."""

OFFERS = ("offer", ANSWERED)


class State(StrEnum):
    """What a file is to this site."""

    HERE = "here"
    LEAVING = "leaving"
    SENT = "sent"
    ARRIVING = "arriving"


class Entry(NamedTuple):
    """A file on record: `since` (seconds since 1970) it is in its state; `reason` is why it has not gone on."""

    file: File
    state: State
    since: float
    tries: int
    reason: str


class Post(NamedTuple):
    """A message that is due."""

    number: int
    body: bytes


_files = Table(
    "placed_files",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("blake3", String(64), nullable=False),
    Column("project", String, nullable=False),
    Column("place", String, nullable=False),
    Column("state", String, nullable=False),
    Column("since", Float, nullable=False),
    Column("tries", Integer, nullable=False, default=0),
    Column("due", Float, nullable=False, default=0.0),
    Column("reason", String, nullable=False, default=""),
    Index("placed_files_by_state", "state", "due"),
)

_outbox = Table(
    "placed_outbox",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("kind", String, nullable=False),
    Column("id", String(32), nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("tries", Integer, nullable=False, default=0),
    Column("due", Float, nullable=False, default=0.0),
    Index("placed_outbox_by_file", "id", "kind", unique=True),
    Index("placed_outbox_by_due", "due"),
    sqlite_autoincrement=True,
)

_poison = Table(
    "placed_set_aside",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("reason", String, nullable=False),
    Column("body", LargeBinary, nullable=False, unique=True),
    sqlite_autoincrement=True,
)


class Register:
    """The tables of one site, for any number of threads of its process.

    Parameters
    ----------
    engine
        Its database, that no other site uses.
    site
        Which one it is.
    clock
        Returns the seconds since 1970.
    """

    def __init__(self, engine: Engine, site: Site, clock: Callable[[], float] = time.time) -> None:
        self._engine, self.site, self._clock = engine, site, clock
        self._lock = threading.Lock()

    # What happens to a file

    def take(self, file: File) -> None:
        """Note a file whose bytes are here, and offer it where else it belongs.

        One that was here is offered again: perhaps it comes again because the other site's copy is not whole.
        """
        with self._writing() as connection:
            known = _entry(connection, file.id)
            if known and known.state in (State.HERE, State.LEAVING):
                file = known.file
            else:
                self._put(connection, file, State.HERE if file.place.includes(self.site) else State.LEAVING)
            if file.place.includes(self.site.other):
                self._post(connection, Offer(sender=self.site, file=file))
            if known and known.state is State.ARRIVING:
                self._post(connection, Have(sender=self.site, id=file.id))

    def offered(self, file: File) -> None:
        """Note that the other site offers a file; if it lies here already, have it told so.

        Raises
        ------
        Poison
            If the file is on record with another content or another name, or does not belong here.
        """
        if not file.place.includes(self.site):
            raise Poison(f"{file.id} belongs at {file.place}, but was offered to {self.site}")
        with self._writing() as connection:
            known = _entry(connection, file.id)
            if known and (known.file.name, known.file.size, known.file.blake3) != (file.name, file.size, file.blake3):
                raise Poison(f"{file.id} is on record as {known.file.name!r} of another content")
            if known is None or known.state is State.SENT:
                self._put(connection, file, State.ARRIVING)
            elif known.state is State.LEAVING:  # the sites' rules differ; who is offered a file keeps it
                self._put(connection, file, State.HERE)
                self._forget_posts(connection, file.id, *OFFERS)
            if known and known.state in (State.HERE, State.LEAVING):
                self._post(connection, Have(sender=self.site, id=file.id))

    def arrived(self, id_: str) -> None:
        """Note that a file has been fetched whole; nothing changes if it has come by another way meanwhile."""
        with self._writing() as connection:
            known = _entry(connection, id_)
            if known and known.state is State.ARRIVING:
                self._put(connection, known.file, State.HERE)
                self._post(connection, Have(sender=self.site, id=id_))

    def answered(self, id_: str) -> None:
        """Note that the other site is said to hold a file that it was offered."""
        with self._writing() as connection:
            offer = (_outbox.c.id == id_) & (_outbox.c.kind == "offer")
            connection.execute(update(_outbox).where(offer).values(kind=ANSWERED))

    def settled(self, id_: str) -> None:
        """Note that the other site holds a file that was offered to it, and that this one let it go if it had to."""
        with self._writing() as connection:
            self._forget_posts(connection, id_, *OFFERS)
            mine = _files.c.id == id_
            connection.execute(update(_files).where(mine).values(tries=0, reason=""))
            leaving = mine & (_files.c.state == State.LEAVING)
            connection.execute(update(_files).where(leaving).values(state=State.SENT, since=self._clock()))

    def put_off(self, id_: str, reason: str) -> None:
        """Note why a file could not be fetched, or let go, now: that is tried, or it is offered, again later."""
        with self._writing() as connection:
            known = _entry(connection, id_)
            if known:
                due = self._clock() + _pause(known.tries)
                values = {"tries": known.tries + 1, "due": due, "reason": reason[:500]}
                connection.execute(update(_files).where(_files.c.id == id_).values(**values))
                answered = (_outbox.c.id == id_) & (_outbox.c.kind == ANSWERED)
                connection.execute(update(_outbox).where(answered).values(kind="offer", due=due))

    def drop(self, entry: Entry, reason: str) -> None:
        """Forget a file that was offered, but that the other site has not; its offer is set aside."""
        with self._writing() as connection:
            arriving = (_files.c.id == entry.file.id) & (_files.c.state == State.ARRIVING)
            connection.execute(delete(_files).where(arriving))
            offer = encode(Offer(sender=self.site.other, file=entry.file))
            _set_aside(connection, offer, reason, self._clock())

    def offer_again(self, id_: str) -> None:
        """Offer a file to the other site, whatever that one has said before; it leaves if it does not belong here."""
        with self._writing() as connection:
            known = _entry(connection, id_)
            if known is None or not known.file.place.includes(self.site.other):
                return
            if not known.file.place.includes(self.site):
                self._put(connection, known.file, State.LEAVING)
            self._post(connection, Offer(sender=self.site, file=known.file))

    def fetch_again(self, file: File) -> None:
        """Have a file fetched from the other site in place of what lies here, or of nothing."""
        with self._writing() as connection:
            self._put(connection, file, State.ARRIVING)

    # What is to be done

    def due_posts(self, limit: int) -> list[Post]:
        """Return messages that are due, the oldest first."""
        due = select(_outbox.c.number, _outbox.c.body).where(_outbox.c.due <= self._clock(), _outbox.c.kind != ANSWERED)
        with self._engine.connect() as connection:
            rows = connection.execute(due.order_by(_outbox.c.number).limit(limit)).all()
        return [Post(row.number, bytes(row.body)) for row in rows]

    def posted(self, numbers: list[int]) -> None:
        """Note that messages have left: offers are repeated until they are answered, answers are not."""
        with self._writing() as connection:
            mine = _outbox.c.number.in_(numbers)
            connection.execute(delete(_outbox).where(mine, _outbox.c.kind.not_in(OFFERS)))
            for number, tries in connection.execute(select(_outbox.c.number, _outbox.c.tries).where(mine)).all():
                values = {"tries": tries + 1, "due": self._clock() + _pause(tries)}
                connection.execute(update(_outbox).where(_outbox.c.number == number).values(**values))

    def hurry(self) -> None:
        """Let all that waits for its next try be due: the other site is back."""
        with self._writing() as connection:
            connection.execute(update(_outbox).values(due=0.0, tries=0))
            connection.execute(update(_files).where(_files.c.state == State.ARRIVING).values(due=0.0, tries=0))

    def due_moves(self, limit: int) -> list[Entry]:
        """Return files whose offers were answered, then files that are to be fetched now, the longest due first."""
        answered = select(_files).join(_outbox, _outbox.c.id == _files.c.id).where(_outbox.c.kind == ANSWERED)
        answered = answered.where(_files.c.state != State.ARRIVING).order_by(_outbox.c.number)
        arriving = select(_files).where(_files.c.state == State.ARRIVING, _files.c.due <= self._clock())
        arriving = arriving.order_by(_files.c.due, _files.c.since)
        with self._engine.connect() as connection:
            rows = [row for due in (answered, arriving) for row in connection.execute(due.limit(limit)).all()]
        return [_read(row) for row in rows]

    # What is known

    def find(self, id_: str) -> Entry | None:
        """Return what is on record of a file."""
        with self._engine.connect() as connection:
            return _entry(connection, id_)

    def entries(self, state: State | None = None, after: str = "") -> Iterator[Entry]:
        """Yield the files on record in order of their ids, all or those in one state; reads a page at a time."""
        while True:
            query = select(_files).where(_files.c.id > after).order_by(_files.c.id).limit(PAGE)
            with self._engine.connect() as connection:
                rows = connection.execute(query.where(_files.c.state == state) if state else query).all()
            yield from map(_read, rows)
            if len(rows) < PAGE:
                return
            after = rows[-1].id

    def count(self, state: State) -> int:
        """Return how many files are in a state."""
        with self._engine.connect() as connection:
            return connection.scalar(select(func.count()).select_from(_files).where(_files.c.state == state)) or 0

    def size(self) -> int:
        """Return the bytes of all files that are here."""
        with self._engine.connect() as connection:
            return int(connection.scalar(select(func.sum(_files.c.size)).where(_files.c.state == State.HERE)) or 0)

    # Messages that were set aside

    def set_aside(self, body: bytes, reason: str) -> None:
        """Keep a message that can't be acted on; one that comes again is kept once, by its new number."""
        with self._writing() as connection:
            _set_aside(connection, body[:KEPT], reason, self._clock())

    def aside(self, after: int = 0) -> list[dict[str, Any]]:
        """Return messages that were set aside, a page of them."""
        page = select(_poison).where(_poison.c.number > after).order_by(_poison.c.number).limit(PAGE)
        with self._engine.connect() as connection:
            rows = connection.execute(page).all()
        return [
            {"number": row.number, "at": row.at, "reason": row.reason, "body": bytes(row.body).decode(errors="replace")}
            for row in rows
        ]

    def count_aside(self) -> int:
        """Return how many messages are set aside."""
        with self._engine.connect() as connection:
            return connection.scalar(select(func.count()).select_from(_poison)) or 0

    def find_aside(self, number: int) -> bytes | None:
        """Return a message that was set aside; None if there is none of that number."""
        with self._engine.connect() as connection:
            body = connection.scalar(select(_poison.c.body).where(_poison.c.number == number))
        return None if body is None else bytes(body)

    def forget_aside(self, number: int) -> bool:
        """Forget a message that was set aside; False if there is none of that number."""
        with self._writing() as connection:
            return connection.execute(delete(_poison).where(_poison.c.number == number)).rowcount > 0

    # Parts of transactions

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with self._lock, writing(self._engine) as connection:  # PostgreSQL would let two threads look, then write
            yield connection

    def _put(self, connection: Connection, file: File, state: State) -> None:
        now = self._clock()
        row = {**file.model_dump(mode="json"), "state": state, "since": now, "tries": 0, "due": now, "reason": ""}
        upsert(connection, _files, [row])

    def _post(self, connection: Connection, message: Message) -> None:
        id_ = message.file.id if isinstance(message, Offer) else message.id if isinstance(message, Have) else ""
        self._forget_posts(connection, id_, *(OFFERS if isinstance(message, Offer) else [message.kind]))
        connection.execute(insert(_outbox).values(kind=message.kind, id=id_, body=encode(message)))

    def _forget_posts(self, connection: Connection, id_: str, *kinds: str) -> None:
        connection.execute(delete(_outbox).where(_outbox.c.id == id_, _outbox.c.kind.in_(kinds)))


def _entry(connection: Connection, id_: str) -> Entry | None:
    row = connection.execute(select(_files).where(_files.c.id == id_)).first()
    return _read(row) if row else None


def _read(row: Row[Any]) -> Entry:
    file = File.model_construct(
        id=row.id, name=row.name, size=row.size, blake3=row.blake3, project=row.project, place=Place(row.place)
    )
    return Entry(file, State(row.state), row.since, row.tries, row.reason)


def _set_aside(connection: Connection, body: bytes, reason: str, now: float) -> None:
    connection.execute(delete(_poison).where(_poison.c.body == body))
    connection.execute(insert(_poison).values(at=now, reason=reason[:500], body=body))


def _pause(tries: int) -> float:
    return min(SHORTEST_PAUSE * 2.0 ** min(tries, 20), LONGEST_PAUSE)
