"""What people say of tickets, and are told: for the service and its clients."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

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
    volume: Size = Field(
        0, ge=0, le=1 << 50, description='Most bytes of files in one archive, "2GB"; 0: one archive for all.'
    )
    prepare: bool = Field(True, description="Keep a copy until it expires; without, files are streamed as they are.")
    downloads: int = Field(0, ge=0, le=1_000_000, description="How often it may be fetched; 0: any number of times.")
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
