"""The database: one SQLite file by default, PostgreSQL where many write; both through SQLAlchemy.

Tables are declared on `metadata` by the modules that own them. A transaction that writes is opened by `writing`: SQLite
then takes its write lock at the beginning and waits for it, where one taken half-way would be refused at once.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from sqlalchemy import Column, Connection, Engine, Integer, MetaData, Table, create_engine, event, func, insert, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from ministream.base.errors import UserError

metadata = MetaData()

SCHEMA = 1
"""Raised with every change of a table that `create_all` cannot make."""

LARGEST = 2**63 - 1
"""The largest number that can be kept, or compared with one that is."""

BUSY_SECONDS = 30.0
"""How long SQLite waits for another's write lock."""

_schema = Table("delivery_schema", metadata, Column("version", Integer, primary_key=True))


def open_database(url: str) -> Engine:
    """Connect to a database and make the tables that are missing.

    Parameters
    ----------
    url
        ``sqlite:///relative.db``, ``sqlite:////absolute.db`` or ``postgresql://user:password@host/name``.

    Raises
    ------
    UserError
        If the URL is none, the database can't be reached, or its tables are of another version.
    """
    engine = _engine(url)
    try:
        with writing(engine) as connection:
            if connection.dialect.name == "postgresql":  # services that start together make their tables one by one
                connection.execute(select(func.pg_advisory_xact_lock(SCHEMA)))
            metadata.create_all(connection)
            _check_schema(connection)
    except DBAPIError as error:
        raise UserError(f"database {engine.url!r}: {error.orig}; is it there, and may we write to it?") from error
    return engine


@contextmanager
def writing(engine: Engine, *, flush: bool = True) -> Iterator[Connection]:
    """Open a transaction that writes: committed at the end of the block, rolled back if it raises.

    Parameters
    ----------
    engine
        The database.
    flush
        Whether it waits for the disk. One that does not outlives every kill of this program, but perhaps no loss of
        power; that leaves the database as it was some moments before.
    """
    with engine.execution_options(writes=True, flush=flush).begin() as connection:
        if not flush and connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SET LOCAL synchronous_commit TO off")
        yield connection


def upsert(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows, each of which replaces the one with its primary key, if there is one."""
    dialect = import_module(f"sqlalchemy.dialects.{connection.dialect.name}")  # the other takes 0.1 s of every start
    statement = dialect.insert(table)
    keys = table.primary_key.columns
    changed = {column.name: statement.excluded[column.name] for column in table.columns if column.name not in keys}
    connection.execute(statement.on_conflict_do_update(index_elements=list(keys), set_=changed), rows)


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite":
            return _sqlite(create_engine(parsed, connect_args={"timeout": BUSY_SECONDS}))
        if parsed.get_backend_name() == "postgresql":
            return create_engine(parsed.set(drivername="postgresql+psycopg"), pool_pre_ping=True)
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise UserError(f"database URL: {error}; give sqlite:///file.db or postgresql://…") from error
    raise UserError(f"database {parsed.get_backend_name()!r} is not known; give sqlite:///file.db or postgresql://…")


def _sqlite(engine: Engine) -> Engine:
    @event.listens_for(engine, "connect")
    def set_up(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # transactions begin where SQLAlchemy says, not where sqlite3 guesses
        for pragma in ("journal_mode=WAL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        if options.get("writes"):
            connection.exec_driver_sql(f"PRAGMA synchronous={'FULL' if options.get('flush', True) else 'NORMAL'}")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get("writes") else "BEGIN")

    return engine


def _check_schema(connection: Connection) -> None:
    found = connection.scalar(select(_schema.c.version))
    if found is None:
        connection.execute(insert(_schema).values(version=SCHEMA))
    elif found != SCHEMA:
        raise UserError(
            f"database {connection.engine.url!r} has tables of version {found}, this program {SCHEMA}: use a new one"
        )
