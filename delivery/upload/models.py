"""What requests and answers hold."""

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from delivery.upload.digests import Kind
from delivery.upload.intake import missing
from delivery.upload.ledger import Chunk, Forward, State, Upload
from ministream.base.units import Size

CHUNK = 1 << 20
"""Bytes of a chunk where the client names no size: those of the interface's first clients."""

MOST_GAPS = 1000
"""Gaps that a status lists."""

Hex = Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")]


class Announcement(BaseModel):
    """A file that will be sent; or, by `file_path`, one that lies below the intake's roots and is sent by itself."""

    model_config = ConfigDict(extra="forbid")

    file_path: str | None = Field(None, max_length=4096, description="A file here, below one of the roots.")
    name: str | None = Field(None, max_length=4096, description="Relative path that it is to have.")
    size: int | None = Field(None, ge=0, le=1 << 50, description="Bytes; without, they are told at the end.")
    chunk_size: Size = Field(CHUNK, ge=1, description="Bytes of every chunk but the last.")
    digest: Kind | None = Field(None, description="What the whole is proved by: tree (the default), sha256, blake3.")
    key: str = Field("", max_length=200, description="What you know the file by: finds its upload again.")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.file_path is None) == (self.name is None):
            raise ValueError("give either name or file_path")
        return self


class Known(BaseModel):
    """Chunks that may be here already."""

    model_config = ConfigDict(extra="forbid")

    chunks: dict[int, Hex] = Field(max_length=256, description="BLAKE3 of chunks, by number.")


class Copy(BaseModel):
    """Where the copy for elsewhere stands."""

    state: Forward
    attempts: int


class Status(BaseModel):
    """All that is told of an upload; times are seconds since 1970."""

    file_id: str
    owner: str
    name: str
    state: State
    reason: str
    size: int | None
    chunk_size: int
    chunks: int | None
    digest: Kind
    received: int
    missing: list[tuple[int, int]] = Field(description="First and last number of each gap.")
    created: float
    expires: float | None
    place: str | None
    tree: str
    forward: Copy


def status(upload: Upload, found: list[Chunk]) -> Status:
    """Return what is told of an upload, of which these chunks are here."""
    values: dict[str, Any] = {name: getattr(upload, name) for name in Status.model_fields if hasattr(upload, name)}
    open_ = upload.state == State.OPEN
    values |= {
        "file_id": upload.id,
        "size": upload.size if upload.exact else None,
        "chunks": upload.chunk_count if upload.exact else None,
        "received": sum(chunk.length for chunk in found),
        "missing": missing(upload, found)[:MOST_GAPS] if upload.exact and open_ else [],
        "expires": upload.expires if open_ else None,
        "forward": Copy(state=upload.forward, attempts=upload.attempts),
    }
    return Status(**values)
