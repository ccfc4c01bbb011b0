"""Where the bytes of uploads lie: chunks are put in any order, and `finish` makes the file of them without moving any.

All methods block, may be called by several threads at once, and can be repeated: after a kill they are.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from ministream.base.errors import UserError

BLOCK = 1 << 20
"""Bytes read at a time."""

Pieces = Iterable[bytes | bytearray | memoryview]
"""The bytes of a chunk, as they came, to be gone over more than once: nobody puts them together in memory."""


class Slot(NamedTuple):
    """What a store must know of an upload.

    Parameters
    ----------
    id, name
        Its own name, and the relative POSIX path that its owner wants, below a folder of the owner's.
    size, chunk_size
        In bytes.
    handle
        What the store returned when it began.
    place
        The path that it has got, once it is stored: `name`, or one like it if that was taken.
    """

    id: str
    name: str
    size: int
    chunk_size: int
    handle: str = ""
    place: str = ""


class NoRoom(UserError):  # noqa: N818 - says what is wrong
    """There is no room for so many bytes."""


class Gone(UserError):  # noqa: N818 - says what is wrong
    """The bytes of an upload are where they were no more."""


class Taken(UserError):  # noqa: N818 - says what is wrong
    """The place that an upload was to have has got somebody else's file, or no folder where one must be."""


class ChunkStore(Protocol):
    """A place for uploads.

    Parameters
    ----------
    least, most
        Sizes in bytes of chunks that it takes; the last one of an upload may be smaller.
    readable
        Whether chunks can be read before `finish`.
    in_place
        Whether chunks can be put in parts, in any order and again; others take them whole.
    """

    least: int
    most: int
    readable: bool
    in_place: bool

    def begin(self, slot: Slot, *, exact: bool) -> str:
        """Reserve room and return the handle; NoRoom if there is none. Sizes that are not `exact` are upper bounds."""
        ...

    def put(self, slot: Slot, number: int, pieces: Pieces, at: int = 0) -> None:
        """Write a chunk, or the part of it that begins `at` so many bytes, to its place; Gone if the upload ended."""
        ...

    def read(self, slot: Slot, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes from `start` up to, without, `stop`; those of a place, once there is one."""
        ...

    def finish(self, slot: Slot) -> None:
        """Make `place` of the upload, all of whose chunks were put; `size` is exact now. Taken if it can't be had."""
        ...

    def drop(self, slot: Slot) -> None:
        """Forget an upload that will not be finished."""
        ...

    def obstacle(self, place: str) -> str:
        """Return what is in the way of a place: itself, or the part that is there and is no folder; or nothing."""
        ...


def open_store(url: str, spare: int) -> ChunkStore:
    """Open a folder, ``s3://bucket/prefix`` or ``mongodb://host/database``.

    Parameters
    ----------
    url
        Where.
    spare
        Bytes that are left free, where that can be known.

    Raises
    ------
    UserError
        If that is no store, or what it needs is not installed.
    """
    try:
        if url.startswith("s3://"):
            from delivery.upload.stores.s3 import S3Chunks

            return S3Chunks(url)
        if url.startswith("mongodb"):
            from delivery.upload.stores.mongo import MongoChunks

            return MongoChunks(url)
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed: pip install 'mini-stream[delivery-stores]'") from error
    if "://" in url:
        raise UserError(f"store {url}: give a folder, s3://bucket/prefix or mongodb://host/database")
    from delivery.upload.stores.files import FileChunks

    return FileChunks(Path(url), spare)
