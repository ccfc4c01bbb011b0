"""Uploads in MongoDB: a document for each chunk, with children in a second collection where it would be too large.

A chunk's document says into how many children it was cut. They are written before it: one that is there is whole.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Semaphore
from typing import Any

import pymongo
from pymongo.errors import PyMongoError

from delivery.upload.stores import Gone, NoRoom, Pieces, Slot
from ministream.base.errors import UserError

LARGEST = 1 << 20
"""Bytes in a document: MongoDB takes 16 MiB, but its client holds each several times while it is sent."""

WRITERS = 2
"""Chunks on their way at once: of each, one document."""

_DISK_FULL = 14031


class MongoChunks:
    """Uploads in a database; `url` is ``mongodb://user:password@host/database``."""

    least, most, readable, in_place = 1, 1 << 30, True, False

    def __init__(self, url: str) -> None:
        try:
            self._client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(url, w="majority")
            database = self._client.get_default_database("delivery")
        except (PyMongoError, ValueError) as error:
            raise UserError(f"store mongodb://…: {error}; give mongodb://user:password@host/database") from error
        self._uploads, self._files = database["uploads"], database["files"]
        self._chunks, self._children = database["chunks"], database["chunk_children"]
        self._writers = Semaphore(WRITERS)

    def begin(self, slot: Slot, *, exact: bool) -> str:  # noqa: ARG002 - MongoDB reserves nothing
        """Note the upload; how much room there is, only MongoDB's own operator knows."""
        with _told():
            self._uploads.insert_one({"_id": slot.id, "name": slot.name, "chunk_size": slot.chunk_size})
        return ""

    def put(self, slot: Slot, number: int, pieces: Pieces, at: int = 0) -> None:  # noqa: ARG002 - always whole
        """Write a chunk, in place of one that was there."""
        parent, count = {"_id": _id(slot, number)}, -(-sum(map(len, pieces)) // LARGEST)
        with _told(), self._writers:
            if self._uploads.find_one({"_id": slot.id}) is None:
                raise Gone(f"{slot.id}: this upload has ended")
            documents = recut(pieces, LARGEST)
            if count <= 1:
                self._chunks.replace_one(parent, {"data": next(documents, b""), "children": 0}, upsert=True)
                return
            for child, data in enumerate(documents):
                self._children.replace_one({"_id": {**parent["_id"], "child": child}}, {"data": data}, upsert=True)
            self._chunks.replace_one(parent, {"children": count}, upsert=True)

    def read(self, slot: Slot, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes from `start` up to, without, `stop`."""
        at = start // slot.chunk_size * slot.chunk_size
        while at < stop:
            for data in self._chunk(slot, at // slot.chunk_size):
                if block := data[max(start - at, 0) : max(stop - at, 0)]:
                    yield block
                at += len(data)

    def finish(self, slot: Slot) -> None:
        """Enter the file: where its chunks are, and how long it is."""
        file = {"upload": slot.id, "size": slot.size, "chunk_size": slot.chunk_size}
        with _told():
            self._files.replace_one({"_id": slot.place}, file, upsert=True)

    def drop(self, slot: Slot) -> None:
        """Delete the upload and its chunks."""
        with _told():
            self._uploads.delete_one({"_id": slot.id})
            for number in range(-(-slot.size // slot.chunk_size)):
                chunk = self._chunks.find_one_and_delete({"_id": _id(slot, number)}, {"children": 1}) or {}
                for child in range(chunk.get("children", 0)):
                    self._children.delete_one({"_id": {**_id(slot, number), "child": child}})

    def obstacle(self, place: str) -> str:
        """Return the place if a file was entered under that path."""
        with _told():
            return place if self._files.find_one({"_id": place}, {"_id": 1}) else ""

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _chunk(self, slot: Slot, number: int) -> Iterator[bytes]:
        with _told():
            chunk = self._chunks.find_one({"_id": _id(slot, number)})
            if chunk is None:
                raise Gone(f"chunk {number} of {slot.id} is not there any more")
            if not chunk["children"]:
                yield chunk["data"]
            for child in range(chunk["children"]):
                found = self._children.find_one({"_id": {**_id(slot, number), "child": child}})
                if found is None:
                    raise Gone(f"chunk {number} of {slot.id} has lost child {child}")
                yield found["data"]


def recut(pieces: Pieces, size: int) -> Iterator[bytes]:
    """Yield the same bytes in pieces of `size`; the last may be smaller."""
    document = bytearray()
    for piece in pieces:
        rest = memoryview(piece)
        while rest:
            room = size - len(document)
            document += rest[:room]
            rest = rest[room:]
            if len(document) == size:
                yield bytes(document)
                document.clear()
    if document:
        yield bytes(document)


def _id(slot: Slot, number: int) -> dict[str, Any]:
    """Return the key of a chunk: MongoDB compares such documents with the order of their fields."""
    return {"upload": slot.id, "number": number}


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except PyMongoError as error:
        kind = NoRoom if getattr(error, "code", None) == _DISK_FULL else UserError
        raise kind(f"MongoDB: {error}") from error
