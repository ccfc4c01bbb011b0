"""What was offered to whom, and who has what: the server's memory, which no crash loses.

A mirror is offered one batch at a time, and the same one until it is acknowledged or one of its files changes. What a
broker has is remembered by path and content until all brokers have it and the file has left for the archive.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

from pydantic_core import from_json, to_json
from sqlalchemy import Boolean, Column, Engine, Index, Row, String, Table, Text, and_, delete, insert, select, update
from sqlalchemy.sql.functions import count

from delivery.database import metadata, upsert, writing
from delivery.files.version import FileVersion


class Mirror(NamedTuple):
    """Who mirrors which files of which project."""

    broker: str
    project: str
    ext: str


class Batch(NamedTuple):
    """Files that are sent as one zip; `name` is the zip's."""

    id: str
    mirror: Mirror
    name: str
    versions: list[FileVersion]
    acknowledged: bool = False


_batches = Table(
    "sync_batches",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("broker", String, nullable=False),
    Column("project", String, nullable=False),
    Column("ext", String, nullable=False),
    Column("name", String, nullable=False),
    Column("files", Text, nullable=False),  # one value: a row for each of ten thousand would delay the first byte
    Column("acknowledged", Boolean, nullable=False),
    Index("sync_batches_of", "broker", "project", "ext", "acknowledged"),
)

_had = Table(
    "sync_had",
    metadata,
    Column("project", String, primary_key=True),
    Column("path", String, primary_key=True),
    Column("broker", String, primary_key=True),
    Column("blake3", String(64), nullable=False),
)


class Ledger:
    """The tables of batches, for any number of threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def offered(self, mirror: Mirror) -> Batch | None:
        """Return the batch that a mirror has been offered and has not acknowledged."""
        mine = and_(*(_batches.c[name] == value for name, value in mirror._asdict().items()))
        with self._engine.connect() as connection:
            row = connection.execute(select(_batches).where(mine, ~_batches.c.acknowledged)).first()
        return _batch(row) if row else None

    def batch(self, id_: str) -> Batch | None:
        """Return a batch, without its files if it is acknowledged; None if there never was one of this id."""
        with self._engine.connect() as connection:
            row = connection.execute(select(_batches).where(_batches.c.id == id_)).first()
        return _batch(row) if row else None

    def offer(self, batch: Batch) -> None:
        """Note a batch in place of the one that its mirror was offered before."""
        mine = and_(*(_batches.c[name] == value for name, value in batch.mirror._asdict().items()))
        with writing(self._engine) as connection:
            connection.execute(delete(_batches).where(mine, ~_batches.c.acknowledged))
            files = to_json([tuple(version) for version in batch.versions]).decode()  # of tuples it is twice as fast
            row = {"id": batch.id, "name": batch.name, "files": files, "acknowledged": False}
            connection.execute(insert(_batches).values(**row, **batch.mirror._asdict()))

    def acknowledge(self, batch: Batch) -> None:
        """Note that a broker has all of a batch."""
        project, broker = batch.mirror.project, batch.mirror.broker
        rows = [
            {"project": project, "path": version.path, "broker": broker, "blake3": version.blake3}
            for version in batch.versions
        ]
        with writing(self._engine) as connection:
            connection.execute(update(_batches).where(_batches.c.id == batch.id).values(acknowledged=True, files="[]"))
            upsert(connection, _had, rows)

    def tally(self) -> list[tuple[Mirror, bool, int]]:
        """Return how many batches mirrors were offered: those that are acknowledged (True) and those that are not."""
        columns = _batches.c.broker, _batches.c.project, _batches.c.ext, _batches.c.acknowledged
        with self._engine.connect() as connection:
            rows = connection.execute(select(*columns, count()).group_by(*columns)).all()
        return [(Mirror(*row[:3]), row.acknowledged, row[-1]) for row in rows]

    def had(self, project: str) -> dict[str, dict[str, str]]:
        """Return what brokers have of files that have not left: the content's BLAKE3, by path and broker."""
        found: dict[str, dict[str, str]] = {}
        with self._engine.connect() as connection:
            columns = select(_had.c.path, _had.c.broker, _had.c.blake3).where(_had.c.project == project)
            for path, broker, blake3 in connection.execute(columns).all():
                found.setdefault(path, {})[broker] = blake3
        return found

    def archived(self, project: str, paths: Iterable[str]) -> None:
        """Forget who has files that have left."""
        with writing(self._engine) as connection:
            for path in paths:
                connection.execute(delete(_had).where(_had.c.project == project, _had.c.path == path))


def _batch(row: Row[Any]) -> Batch:
    versions = [FileVersion._make(fields) for fields in from_json(row.files)]
    return Batch(row.id, Mirror(row.broker, row.project, row.ext), row.name, versions, row.acknowledged)
