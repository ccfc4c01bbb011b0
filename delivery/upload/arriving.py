"""Chunks on their way: hashed, and written to their places, while they come, so that their size costs no memory.

What lies in a place counts for nothing until it is verified and entered. All that must be prevented is that one who is
slow, or sends damage, writes over what another request has brought meanwhile. So one request at a time writes to a
place. A second one for the same chunk is kept aside, and if it is complete first, the place is its own: the first one
writes no more, and is told at its end how its bytes compare with those that count. Chunks for stores that take them
whole are kept aside as well.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blake3 import blake3

from delivery.upload.aside import Aside
from delivery.upload.digests import Kind, Proof, is_same, new_hasher
from delivery.upload.ledger import Chunk, Upload
from delivery.upload.stores import ChunkStore, Pieces


class Arrival:
    """One request's bytes for a chunk.

    Parameters
    ----------
    upload, number
        Which chunk.
    proof
        The digest that its sender gave; None where there is none to compare with.
    key
        Of old clients' HMACs.
    spool
        Folder for what is kept aside.
    """

    def __init__(self, upload: Upload, number: int, proof: Proof | None, key: bytes, spool: Path | None) -> None:
        self.upload, self.number, self.proof = upload, number, proof
        self.length, self._slot = 0, upload.slot
        self._leaf = blake3()
        self._other = None if proof is None or proof.kind == Kind.BLAKE3 else new_hasher(proof.kind, key)
        self._store: ChunkStore | None = None
        self._spool = spool
        self._aside: Aside | None = None
        self._keeps, self._lock = True, threading.Lock()

    @property
    def pieces(self) -> Pieces:
        """What is kept of it."""
        return self._aside or ()

    def write_to(self, store: ChunkStore) -> None:
        """Write what comes to the chunk's place at once."""
        self._store, self._keeps = store, False

    def only_compare(self) -> None:
        """Keep nothing of what comes: the chunk is there, or somebody else's."""
        with self._lock:
            self._store, self._keeps = None, False
            if self._aside:
                self._aside.close()
                self._aside = None

    def add(self, pieces: Pieces) -> None:
        """Take in the next bytes, which may be overwritten afterwards."""
        for piece in pieces:
            self._leaf.update(piece)
            if self._other:
                self._other.update(piece)
        with self._lock:
            if self._store:
                self._store.put(self._slot, self.number, pieces, self.length)
            elif self._keeps:
                self._aside = self._aside or Aside(self._spool)
                self._aside.add(pieces)
            self.length += sum(map(len, pieces))

    def proved(self) -> Chunk | None:
        """Return the chunk if it is what its sender meant."""
        digest = self._leaf.digest()
        found = self._other.hexdigest() if self._other else digest.hex()
        right = self.proof is None or is_same(self.proof.digest, found)
        return Chunk(self.number, self.length, digest) if right else None


class Places:
    """Who writes to which chunk's place."""

    def __init__(self) -> None:
        self._writing: dict[tuple[str, int], Arrival | None] = {}
        self._lock = threading.Lock()

    def take(self, arrival: Arrival, store: ChunkStore) -> None:
        """Let an arrival write while it comes, if nobody else does."""
        with self._lock:
            if self._writing.setdefault((arrival.upload.id, arrival.number), arrival) is arrival:
                arrival.write_to(store)

    def leave(self, arrival: Arrival) -> None:
        """Say that an arrival writes no more."""
        arrival.only_compare()
        with self._lock:
            if self._writing.get((arrival.upload.id, arrival.number)) is arrival:
                del self._writing[arrival.upload.id, arrival.number]

    @contextmanager
    def closed(self, arrival: Arrival) -> Iterator[bool]:
        """Let nobody write to an arrival's place until the end of the block; yield whether all that came lies there."""
        key = arrival.upload.id, arrival.number
        with self._lock:
            complete = self._writing.get(key) is arrival
            if complete:
                self._writing[key] = None
        try:
            yield complete
        finally:
            if complete:
                with self._lock:
                    del self._writing[key]

    @contextmanager
    def alone(self, upload: str, number: int) -> Iterator[None]:
        """Let nobody else write to a place until the end of the block, nor go on with what was begun."""
        with self._lock:
            other = self._writing.get((upload, number))
            self._writing[upload, number] = None
        try:
            if other:
                other.only_compare()
            yield
        finally:
            with self._lock:
                del self._writing[upload, number]
