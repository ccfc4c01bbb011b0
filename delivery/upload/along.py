"""Digests of plain bytes, taken behind the chunks as they come: at the end, little is left to be read.

Only what has come without a gap can be hashed. Chunks that come roughly in order are still in the system's memory when
they are read for it. After a restart it begins again, in the background, while the rest arrives.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

from delivery.upload.digests import Hasher, Kind, new_hasher
from delivery.upload.ledger import Ledger, Upload
from delivery.upload.stores import ChunkStore
from ministream.base.errors import UserError
from ministream.base.log import get_logger

AHEAD = 256
"""Chunks looked for at a time."""


class Along:
    """The digests of all open uploads that asked for one of plain bytes."""

    def __init__(self, ledger: Ledger, store: ChunkStore, key: bytes) -> None:
        self._ledger, self._store, self._key = ledger, store, key
        self._runs: dict[tuple[str, Kind], _Run] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="along")

    def nudge(self, upload: Upload) -> None:
        """Say that a chunk has come."""
        if upload.digest == Kind.TREE or not self._store.readable:
            return
        run = self._run(upload)
        if not run.queued:
            run.queued = True
            self._pool.submit(self._advance, run, upload)

    def digest(self, upload: Upload) -> str:
        """Return the digest of an upload whose chunks are all there."""
        run = self._run(upload)
        run.advance(self._ledger, self._store, upload)
        return run.hasher.hexdigest()

    def forget(self, upload: str) -> None:
        """Drop what was hashed of an upload that has ended."""
        for kind in Kind:
            self._runs.pop((upload, kind), None)

    def close(self) -> None:
        """End once the chunk in hand is hashed."""
        for run in self._runs.values():
            run.over = True
        self._pool.shutdown()

    def _run(self, upload: Upload) -> "_Run":
        return self._runs.setdefault((upload.id, upload.digest), _Run(new_hasher(upload.digest, self._key)))

    def _advance(self, run: "_Run", upload: Upload) -> None:
        run.queued = False
        try:
            run.advance(self._ledger, self._store, upload)
        except UserError as error:  # it ended meanwhile, or the store has a fault: the end will tell
            get_logger().debug("not hashed along", upload=upload.id, reason=str(error))


class _Run:
    def __init__(self, hasher: Hasher) -> None:
        self.hasher, self.queued, self.over = hasher, False, False
        self._next, self._lock = 0, threading.Lock()

    def advance(self, ledger: Ledger, store: ChunkStore, upload: Upload) -> None:
        """Hash on, up to the first gap."""
        with self._lock:
            while found := ledger.chunks(upload.id, self._next, AHEAD):
                for chunk in found:
                    if chunk.number != self._next or self.over:
                        return
                    start = chunk.number * upload.chunk_size
                    for block in store.read(upload.slot, start, start + chunk.length):
                        self.hasher.update(block)
                    self._next += 1
