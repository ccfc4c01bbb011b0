"""What is known of uploads: whose they are, which of their chunks are verified and written, what became of them.

A chunk is entered when it is in the store, never before. Chunks that come at the same time are entered together, and
without a wait for the disk, which would first write down all that came: no kill loses one, but a loss of power may
undo chunks of open uploads, which must be sent anew then. Every change of state has its line in the audit
trail, in the same transaction.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, Row, bindparam, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from delivery.database import writing
from delivery.upload.digests import Kind
from delivery.upload.stores import Slot
from delivery.upload.tables import audit, chunks, uploads
from ministream.base.errors import UserError

SOME = 500
"""Digests asked for in one statement."""

LONGEST_NAME = 255
"""Bytes of a part of a path: what file systems take."""

LONGEST_SUFFIX = 32
"""Bytes of what is kept at the end of a name that gets a number; what is longer is no suffix."""

LOGIN_REFUSED, MOST_REFUSED = "login refused", 100_000
"""What the audit trail calls a login with a wrong password, and how many of them it keeps."""

NAMESAKES = 1000
"""Files that may have the same name, but for their numbers."""

_CHUNKS = select(chunks.c.number, chunks.c.length, chunks.c.blake3)
# asked for every chunk that comes; what is put together anew costs twice as much
_ONE_CHUNK = _CHUNKS.where(chunks.c.upload == bindparam("upload"), chunks.c.number == bindparam("number"))
_ONE_UPLOAD = select(uploads).where(uploads.c.id == bindparam("upload"))


class State(StrEnum):
    """Where an upload stands."""

    OPEN = "open"
    STORED = "stored"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


class Forward(StrEnum):
    """Where the copy of an upload for elsewhere stands."""

    NONE = ""
    WAITING = "waiting"
    DONE = "done"
    FAILED = "failed"


class Chunk(NamedTuple):
    """A chunk that is in the store: its number, its length in bytes, its BLAKE3."""

    number: int
    length: int
    blake3: bytes


class Upload(NamedTuple):
    """An upload, as `tables.uploads` describes it."""

    id: str
    owner: str
    name: str
    size: int
    exact: bool
    chunk_size: int
    digest: Kind
    door: str
    key: str
    more: dict[str, Any]
    handle: str
    state: State
    reason: str
    created: float
    expires: float
    place: str | None = None
    finished: bool = False
    tree: str = ""
    forward: Forward = Forward.NONE
    attempts: int = 0

    @property
    def slot(self) -> Slot:
        """What its store must know."""
        return Slot(self.id, f"{self.owner}/{self.name}", self.size, self.chunk_size, self.handle, self.place or "")

    @property
    def chunk_count(self) -> int:
        """How many chunks it has, at most if the size is not exact."""
        return -(-self.size // self.chunk_size)

    def fits(self, chunk_size: int) -> bool:
        """Return whether somebody who means to send chunks of that size finds it again in it."""
        return self.state == State.STORED or self.chunk_size == chunk_size

    def length(self, number: int) -> int:
        """Return the bytes that chunk `number` has, at most if the size is not exact; 0 if there is no such chunk."""
        return max(min(self.chunk_size, self.size - number * self.chunk_size), 0) if number >= 0 else 0


class Ended(Exception):  # noqa: N818 - says what happened
    """An upload is not open any more."""


class Ledger:
    """All uploads; for any number of threads.

    Parameters
    ----------
    engine
        The database.
    expire
        Seconds without a chunk after which an upload expires.
    clock
        Returns the seconds since 1970.
    """

    def __init__(self, engine: Engine, expire: float, clock: Callable[[], float] = time.time) -> None:
        self._engine, self._expire, self.clock = engine, expire, clock
        self._together = _Together(self._enter)

    # Uploads

    def add(self, upload: Upload) -> None:
        """Enter a new upload."""
        with writing(self._engine) as connection:
            connection.execute(insert(uploads).values(**upload._asdict()))
            self._note(connection, upload.owner, "announced", upload.id, f"{upload.name}, {upload.size} bytes")

    def get(self, name: str) -> Upload | None:
        """Return an upload."""
        with self._engine.connect() as connection:
            row = connection.execute(_ONE_UPLOAD, {"upload": name}).one_or_none()
        return _upload(row) if row else None

    def current(self, owner: str, key: str) -> Upload | None:
        """Return the open upload that its owner knows by a key, or the stored one."""
        chosen = uploads.c.owner == owner, uploads.c.key == key, uploads.c.state.in_([State.OPEN, State.STORED])
        with self._engine.connect() as connection:
            row = connection.execute(select(uploads).where(*chosen).order_by(uploads.c.created.desc())).first()
        return _upload(row) if row else None

    def latest(self, owner: str | None, count: int) -> list[Upload]:
        """Return the newest uploads, of one owner or of all, newest first."""
        rows = select(uploads).order_by(uploads.c.created.desc()).limit(count)
        with self._engine.connect() as connection:
            return [_upload(row) for row in connection.execute(rows if owner is None else rows.filter_by(owner=owner))]

    def unfinished(self) -> list[Upload]:
        """Return what was stored when a kill came."""
        return self._all(uploads.c.state == State.STORED, ~uploads.c.finished)

    def to_forward(self) -> list[str]:
        """Return what has yet to be sent on."""
        return [upload.id for upload in self._all(uploads.c.forward == Forward.WAITING, uploads.c.finished)]

    def to_take(self) -> list[str]:
        """Return the open uploads of files that lie here."""
        return [upload.id for upload in self._all(uploads.c.state == State.OPEN, uploads.c.door == "root")]

    def overdue(self) -> list[Upload]:
        """Return the open uploads that have expired."""
        return self._all(uploads.c.state == State.OPEN, uploads.c.expires <= self.clock())

    def deadline(self) -> float:
        """Return when an upload expires that a chunk came for now."""
        return self.clock() + self._expire

    def reserved(self) -> int:
        """Return the bytes of all uploads that are stored or may be."""
        return self._sum(uploads.c.state.in_([State.OPEN, State.STORED]))

    def asked(self, owner: str, since: float) -> int:
        """Return the bytes that somebody has announced since then, and not given up."""
        return self._sum(
            uploads.c.owner == owner, uploads.c.created >= since, uploads.c.state.in_([State.OPEN, State.STORED])
        )

    def count(self, state: State) -> int:
        """Return how many uploads are in a state."""
        with self._engine.connect() as connection:
            return connection.scalar(select(func.count()).where(uploads.c.state == state)) or 0

    # Chunks

    def enter(self, upload: str, chunk: Chunk) -> None:
        """Count a chunk that is in the store.

        Raises
        ------
        Ended
            If the upload is not open any more.
        """
        if not self._together.add((upload, chunk)):
            raise Ended

    def enter_all(self, upload: str, entered: Sequence[Chunk]) -> None:
        """Count chunks that are in the store, all or none."""
        if entered and not all(self._enter([(upload, chunk) for chunk in entered])):
            raise Ended

    def chunk(self, upload: str, number: int) -> Chunk | None:
        """Return a chunk, if it is there."""
        with self._engine.connect() as connection:
            row = connection.execute(_ONE_CHUNK, {"upload": upload, "number": number}).one_or_none()
        return Chunk(*row) if row else None

    def chunks(self, upload: str, first: int = 0, limit: int | None = None) -> list[Chunk]:
        """Return the chunks that are there, in order, from a number on."""
        rows = _CHUNKS.where(chunks.c.upload == upload, chunks.c.number >= first).order_by(chunks.c.number)
        with self._engine.connect() as connection:
            return [Chunk(*row) for row in connection.execute(rows.limit(limit))]

    def chunk_count(self, upload: str) -> int:
        """Return how many chunks are there."""
        with self._engine.connect() as connection:
            return connection.scalar(select(func.count()).where(chunks.c.upload == upload)) or 0

    def known(self, owner: str, digests: Sequence[bytes]) -> dict[bytes, tuple[Upload, int]]:
        """Return where chunks lie that somebody has stored already, by their BLAKE3s."""
        found: dict[bytes, tuple[Upload, int]] = {}
        chosen = chunks.c.blake3, chunks.c.number, *uploads.c
        joined = select(*chosen).join(uploads, uploads.c.id == chunks.c.upload)
        mine = uploads.c.owner == owner, uploads.c.state == State.STORED, uploads.c.finished
        with self._engine.connect() as connection:
            for start in range(0, len(digests), SOME):
                some = chunks.c.blake3.in_(digests[start : start + SOME])
                for row in connection.execute(joined.where(some, *mine)):
                    found[row.blake3] = _upload(row), row.number
        return found

    # Ends

    def store(self, upload: Upload, tree: str, obstacle: Callable[[str], str], *, forward: bool) -> tuple[Upload, bool]:
        """Let an open upload be stored, once: return it, and whether it was this call.

        Parameters
        ----------
        upload
            With its exact size.
        tree
            Its tree digest.
        obstacle
            Returns what is in the way of a place, as `ChunkStore.obstacle` does.
        forward
            Whether it is to be sent on.
        """
        values = {"state": State.STORED, "size": upload.size, "exact": True, "tree": tree,
                  "forward": Forward.WAITING if forward else Forward.NONE}  # fmt: skip
        won = self._place(upload._replace(tree=tree), obstacle, "stored", uploads.c.state == State.OPEN, **values)
        stored = self.get(upload.id)
        if stored is None or stored.state != State.STORED:
            raise Ended
        return stored, won

    def move(self, upload: Upload, obstacle: Callable[[str], str]) -> Upload:
        """Give an upload that is stored, but not finished, another place, since it can't have the one that it got."""
        self._place(upload, obstacle, "moved", uploads.c.state == State.STORED, ~uploads.c.finished)
        return self.get(upload.id) or upload

    def _place(self, upload: Upload, obstacle: Callable[[str], str], action: str, *chosen: Any, **values: Any) -> bool:
        """Give an upload the first place that is free, if it is as `chosen` says; return whether it was."""
        parts, numbers = [upload.owner, *upload.name.split("/")], Counter[int]()
        for _ in range(NAMESAKES):
            place = "/".join(_numbered(part, numbers[at]) for at, part in enumerate(parts))
            taken = obstacle(place)
            if not taken:
                try:
                    return self._take_place(upload, place, action, *chosen, **values)
                except IntegrityError:  # another upload has just got it
                    taken = place
            numbers[taken.count("/")] += 1
        raise UserError(f"{upload.name[:200]!a}: {NAMESAKES} files have that name already; give it another one")

    def _take_place(self, upload: Upload, place: str, action: str, *chosen: Any, **values: Any) -> bool:
        change = update(uploads).where(uploads.c.id == upload.id, *chosen).values(place=place, **values)
        with writing(self._engine) as connection:
            won = bool(connection.execute(change).rowcount)
            if won:
                self._note(connection, upload.owner, action, upload.id, f"{place}, tree {upload.tree}")
        return won

    def finish(self, upload: str) -> None:
        """Note that the store has done its part."""
        with writing(self._engine) as connection:
            connection.execute(update(uploads).where(uploads.c.id == upload).values(finished=True))

    def end(self, upload: str, who: str, state: State, reason: str) -> bool:
        """Let an open upload end without being stored; returns whether this call did it."""
        open_ = uploads.c.id == upload, uploads.c.state == State.OPEN
        with writing(self._engine) as connection:
            if not connection.execute(update(uploads).where(*open_).values(state=state, reason=reason)).rowcount:
                return False
            connection.execute(delete(chunks).where(chunks.c.upload == upload))
            self._note(connection, who, state, upload, reason)
        return True

    def set_forward(self, upload: str, forward: Forward, reason: str, attempts: int) -> None:
        """Note how the copy for elsewhere is getting on."""
        values = {"forward": forward, "reason": reason[:1000], "attempts": attempts}
        with writing(self._engine) as connection:
            connection.execute(update(uploads).where(uploads.c.id == upload).values(**values))
            self._note(connection, "forward", f"forward {forward}", upload, reason)

    # Audit

    def note(self, who: str, action: str, upload: str = "", detail: str = "") -> None:
        """Write a line of the audit trail."""
        with writing(self._engine) as connection:
            self._note(connection, who, action, upload, detail)

    def forget_refused_logins(self, most: int = MOST_REFUSED) -> None:
        """Take the lines of all but the latest ones out of the audit trail: strangers can make any number of them."""
        mine = audit.c.action == LOGIN_REFUSED
        last = select(audit.c.id).where(mine).order_by(audit.c.id.desc()).offset(most).limit(1).scalar_subquery()
        with writing(self._engine) as connection:
            connection.execute(delete(audit).where(mine, audit.c.id <= last))

    def trail(self, after: int, limit: int) -> list[dict[str, Any]]:
        """Return lines of the audit trail, oldest first, after the one with that number."""
        rows = select(audit).where(audit.c.id > after).order_by(audit.c.id).limit(limit)
        with self._engine.connect() as connection:
            return [dict(row._mapping) for row in connection.execute(rows)]  # noqa: SLF001 - SQLAlchemy's public name

    def _note(self, connection: Connection, who: str, action: str, upload: str, detail: str) -> None:
        line = {"at": self.clock(), "who": who, "action": action, "upload": upload, "detail": detail[:1000]}
        connection.execute(insert(audit).values(**line))

    def _enter(self, rows: Sequence[tuple[str, Chunk]]) -> list[bool]:
        """Enter chunks of any uploads in one transaction; return which of them belong to open ones."""
        names = {upload for upload, _ in rows}
        with writing(self._engine, flush=False) as connection:
            open_ = uploads.c.id.in_(names), uploads.c.state == State.OPEN
            statement = update(uploads).where(*open_).values(expires=self.deadline()).returning(uploads.c.id)
            good = set(connection.scalars(statement))
            values = [{"upload": upload, **chunk._asdict()} for upload, chunk in rows if upload in good]
            if values:
                dialect = {"sqlite": sqlite, "postgresql": postgresql}[connection.dialect.name]
                connection.execute(dialect.insert(chunks).on_conflict_do_nothing(), values)
        return [upload in good for upload, _ in rows]

    def _all(self, *chosen: Any) -> list[Upload]:
        with self._engine.connect() as connection:
            return [_upload(row) for row in connection.execute(select(uploads).where(*chosen))]

    def _sum(self, *chosen: Any) -> int:
        with self._engine.connect() as connection:
            return int(connection.scalar(select(func.coalesce(func.sum(uploads.c.size), 0)).where(*chosen)) or 0)


class _Together:
    """Lets rows that come while a transaction is committed be the next one's, all together."""

    def __init__(self, commit: Callable[[Sequence[tuple[str, Chunk]]], list[bool]]) -> None:
        self._commit = commit
        self._waiting: list[_Entry] = []
        self._list, self._committing = threading.Lock(), threading.Lock()

    def add(self, row: tuple[str, Chunk]) -> bool:
        """Return what the transaction says of the row, once it is committed; raise what it raised."""
        entry = _Entry(row)
        with self._list:
            self._waiting.append(entry)
        with self._committing:
            if not entry.done:
                self._lead()
        if entry.error:
            raise entry.error
        return entry.good

    def _lead(self) -> None:
        with self._list:
            batch, self._waiting = self._waiting, []
        try:
            for entry, good in zip(batch, self._commit([entry.row for entry in batch]), strict=True):
                entry.good = good
        except Exception as error:  # told to everybody who is in it
            for entry in batch:
                entry.error = error
        for entry in batch:
            entry.done = True


class _Entry:
    def __init__(self, row: tuple[str, Chunk]) -> None:
        self.row, self.done, self.good = row, False, False
        self.error: Exception | None = None


def _upload(row: Row[Any]) -> Upload:
    values = {name: getattr(row, name) for name in Upload._fields}
    values |= {"digest": Kind(row.digest), "state": State(row.state), "forward": Forward(row.forward)}
    return Upload(**values)


def _numbered(part: str, number: int) -> str:
    """Return `name (2).h5` for a name that is taken, cut so that it is no longer than a name may be."""
    if not number:
        return part
    suffix = PurePosixPath(part).suffix
    if len(suffix.encode()) > LONGEST_SUFFIX:
        suffix = ""
    end = f" ({number + 1}){suffix}"
    stem = part.removesuffix(suffix).encode()[: LONGEST_NAME - len(end.encode())]
    return stem.decode(errors="ignore") + end
