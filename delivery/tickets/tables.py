"""The tables of tickets, of what is prepared for them, and of their events; all times are seconds since 1970."""

from sqlalchemy import JSON, BigInteger, Boolean, Column, Float, Index, Integer, String, Table

from delivery.database import metadata

tickets = Table(
    "tickets",
    metadata,
    Column("id", String, primary_key=True),
    Column("owner", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("state", String, nullable=False),
    Column("reason", String, nullable=False, default=""),
    Column("missing", JSON, nullable=False, default=list),  # paths that are gone, if that is the reason
    Column("priority", Integer, nullable=False),
    Column("asked", Float, nullable=False),
    Column("turn", Float, nullable=False),
    Column("not_before", Float, nullable=False, default=0.0),
    Column("wait_until", Float, nullable=False),
    Column("after", String),  # the ticket that must have succeeded
    Column("attempts", Integer, nullable=False, default=0),
    Column("files", JSON, nullable=False),  # [path, size, mtime_ns, inode] of each
    Column("file_count", Integer, nullable=False),
    Column("bytes", BigInteger, nullable=False),  # of the files
    Column("size", BigInteger, nullable=False),  # that the store must have room for, at most
    Column("key", String, nullable=False),  # of the artefact: one request, one set of versions
    Column("prepare", Boolean, nullable=False),
    Column("volume", BigInteger, nullable=False),  # most bytes of files in one archive; 0: one for all
    Column("keep", Float, nullable=False),
    Column("then", String, nullable=False),  # what becomes of the artefact: delete or move
    Column("expires", Float),  # set once it was ready
    Column("most_downloads", Integer, nullable=False),  # 0: any number
    Column("downloads", JSON, nullable=False, default=list),  # of each volume
    Index("tickets_by_state", "state", "turn"),
    Index("tickets_by_key", "key"),
    Index("tickets_by_owner", "owner", "asked"),
)

artefacts = Table(
    "artefacts",
    metadata,
    Column("key", String, primary_key=True),
    Column("size", BigInteger, nullable=False),  # bytes in the store; none, if it is streamed from the source
    Column("volumes", JSON, nullable=False),  # {"name", "length", "etag", "sha256"} of each
    Column("then", String, nullable=False),
)

events = Table(
    "ticket_events",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("ticket", String, nullable=False),
    Column("progress", Boolean, nullable=False),
    Column("data", JSON, nullable=False),
    Index("events_by_ticket", "ticket", "id"),
    sqlite_autoincrement=True,  # an id is never given twice, though progress replaces progress
)
