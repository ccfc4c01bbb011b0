"""What a ticket is: its states, its row, and what people say and are told of it."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from sqlalchemy import JSON, BigInteger, Boolean, Column, Float, Index, Integer, String, Table

from delivery.database import metadata
from delivery.tickets.admission import HIGHEST
from ministream.base.units import Duration, Size


class State(StrEnum):
    """How far a ticket is."""

    WAITING = "waiting"
    PREPARING = "preparing"
    READY = "ready"
    DONE = "done"
    FAILED = "failed"
    GONE = "gone"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


OVER = (State.DONE, State.FAILED, State.GONE, State.CANCELLED, State.EXPIRED)
"""States that nothing follows, unless an operator tries again."""


class Kind(StrEnum):
    """What a ticket is for; each kind has a lane of its own."""

    DOWNLOAD = "download"
    DELETION = "deletion"


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
    Column("asked", Float, nullable=False),  # seconds since 1970, as all times
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

Path = Annotated[str, Field(min_length=1, max_length=4096)]
Paths = Annotated[
    list[Path],
    Field(min_length=1, max_length=100_000),
    BeforeValidator(lambda given: [given] if isinstance(given, str) else given),
]


class Files(BaseModel):
    """Files that are asked for: relative POSIX paths, folders that end in a slash, or patterns with `*` and `?`."""

    model_config = ConfigDict(extra="forbid")

    paths: Paths


class DownloadRequest(Files):
    """Files to be packed into one archive or several."""

    priority: int = Field(3, ge=0, le=HIGHEST, description="The highest is prepared first.")
    keep: Duration | None = Field(None, description='Life of what is prepared: seconds, or "2 days".')
    then: Literal["delete", "move"] = Field("delete", description="What becomes of it then.")
    volume: Size = Field(0, ge=0, description='Most bytes of files in one archive, "2GB"; 0: one archive for all.')
    prepare: bool = Field(True, description="Keep a copy until it expires; without, files are streamed as they are.")
    downloads: int = Field(0, ge=0, description="How often it may be fetched; 0: any number of times.")
    wait: Duration | None = Field(None, description="How long it may wait in the queue.")
    after: str | None = Field(None, description="Ticket that must have succeeded before.")


class DeletionRequest(Files):
    """Stored files to be deleted."""

    priority: int = Field(3, ge=0, le=HIGHEST, description="The highest runs first.")
    after: str | None = Field(None, description="Ticket that must have succeeded before.")
    wait: Duration | None = Field(None, description="How long it may wait in the queue.")


class Accepted(BaseModel):
    """Where to look for what was asked for."""

    ticketId: str  # noqa: N815 - the name that clients know
    status: str
    result: str


class Volume(BaseModel):
    """One archive; `sha256` is empty if it is streamed, then its manifest holds the digests of the files."""

    name: str
    length: int
    etag: str
    sha256: str
    url: str


class Status(BaseModel):
    """All that is told of a ticket; times are seconds since 1970."""

    ticketId: str  # noqa: N815
    owner: str
    kind: Kind
    state: State
    reason: str
    source: Literal["unchanged", "changed", "deleted", ""]
    missing: list[str]
    priority: int
    ahead: int | None
    files: int
    bytes: int
    asked: float
    expires: float | None
    downloads: int
    volumes: list[Volume]
