"""Prepared artefacts on their shelf: the store, what it may hold, and what is being fetched from it."""

import base64
import hashlib
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from delivery.archive.layout import Entry, Layout
from delivery.archive.stream import Archive
from delivery.files.catalogue import Catalogue
from delivery.files.roots import Found, Root
from delivery.stores import Store
from delivery.tickets.sources import volumes_of
from delivery.web.ranges import Content

PREFIX = "tickets"
"""Folder of keys that are ours: a bucket may hold more."""

Watch = Callable[[int], None]
"""Called with the number of bytes of each block; raises to end the work."""


class Shelf:
    """Makes artefacts and hands them out.

    Parameters
    ----------
    root, catalogue
        The files, and what is known of them.
    store
        Where artefacts are kept.
    attic
        Where they are moved, if that was asked for.
    space, spare
        Most bytes that the store may hold, and bytes that its disk keeps free for others.
    """

    def __init__(
        self, root: Root, catalogue: Catalogue, store: Store, attic: Store | None, *, space: int, spare: int
    ) -> None:
        self.root, self._catalogue = root, catalogue
        self._store, self.attic = store, attic
        self._space, self._spare = space, spare
        self._laid_out: tuple[str, Archive] | None = None
        self._fetched: Counter[str] = Counter()
        self._lock = threading.Lock()

    def capacity(self, held: int) -> int:
        """Return how many bytes the store may hold when it holds `held`: less where others fill its disk."""
        if "://" in self._store.url and not self._store.url.startswith("file://"):
            return self._space
        free = shutil.disk_usage(Path(self._store.url.removeprefix("file://"))).free
        return min(self._space, held + max(free - self._spare, 0))

    def prepare(self, key: str, files: Sequence[Found], most: int, watch: Watch, *, copy: bool) -> list[dict[str, Any]]:
        """Make an artefact and return its volumes, as the table of artefacts has them.

        Parameters
        ----------
        key
            Its name.
        files, most
            What to pack, with most bytes of files in a volume (0: all in one).
        watch
            Told of the bytes that are read.
        copy
            Whether to store it; without, it is laid out only, and read from its files when it is fetched.

        Raises
        ------
        SourceChanged
            If a file changes meanwhile.
        UserError
            If the store can't take it.
        """
        self._catalogue.look(self.root, files, lambda _version: watch(0))
        volumes: list[dict[str, Any]] = []
        try:
            for index, some in enumerate(volumes_of(files, most)):
                archive = self._archive(_key(key, index), some)
                digest = self._keep(_key(key, index), archive, watch) if copy else ""
                volumes.append({"length": archive.length, "etag": archive.etag, "sha256": digest})
        except BaseException:
            if copy:
                self.drop(key, len(volumes), "delete")
            raise
        return volumes

    def open(self, key: str, index: int, volume: Mapping[str, Any], files: Sequence[Found], most: int) -> Content:
        """Return a volume's content; while it is read, the artefact stays.

        Raises
        ------
        FileNotFoundError
            If the store has lost it.
        """
        if volume["sha256"]:
            return _Guarded(self._store.open(_key(key, index), volume["etag"]), lambda by: self._fetch(key, by))
        return self._archive(_key(key, index), volumes_of(files, most)[index])

    def is_fetched(self, key: str) -> bool:
        """Return whether somebody is fetching it just now."""
        return self._fetched[key] > 0

    def drop(self, key: str, volumes: int, then: str) -> None:
        """Delete an artefact, or move it to the attic; may be repeated."""
        for index in range(volumes):
            name = _key(key, index)
            if then == "move" and self.attic and (length := self._store.size(name)) is not None:
                self.attic.put_stream(name, _in_a_thread(self._store.open(name, "").read(0, length)))
            self._store.delete(name)

    def tidy(self, known: Sequence[str]) -> None:
        """Delete what no artefact in `known` accounts for: left by a process that was killed."""
        self._store.sweep()
        for name in self._store.keys(PREFIX):
            if name.split("/")[1] not in known:
                self._store.delete(name)

    def _archive(self, name: str, files: Sequence[Found]) -> Archive:
        """Lay an archive out; the last one is remembered, since who fetches it by ranges asks for it again."""
        last = self._laid_out
        if last is None or last[0] != name:
            versions = self._catalogue.look(self.root, files)
            last = name, Archive(Layout(self.root, [Entry(version.path, version) for version in versions]))
            self._laid_out = last
        return last[1]

    def _keep(self, name: str, archive: Archive, watch: Watch) -> str:
        digest = hashlib.sha256()

        def blocks() -> Iterator[bytes]:
            for block in archive.read(0, archive.length):
                digest.update(block)
                watch(len(block))
                yield block

        self._store.put_stream(name, blocks())
        return digest.hexdigest()

    def _fetch(self, key: str, by: int) -> None:
        with self._lock:
            self._fetched[key] += by


class _Guarded:
    """Content that tells when a reading of it begins and ends."""

    def __init__(self, content: Content, count: Callable[[int], None]) -> None:
        self._content, self._count = content, count
        self.length, self.etag = content.length, content.etag

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes from `start` up to, without, `stop`."""
        self._count(1)
        try:
            yield from self._content.read(start, stop)
        finally:
            self._count(-1)


def _in_a_thread(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield what `blocks` does, read elsewhere: obstore, while it puts, bears no other call from its own thread."""
    with ThreadPoolExecutor(1) as reader:
        while block := reader.submit(next, blocks, b"").result():
            yield block


def digest_header(volume: Mapping[str, Any]) -> dict[str, str]:
    """Return the digest of the whole as HTTP says it (RFC 9530), if it is known."""
    if not volume["sha256"]:
        return {}
    return {"repr-digest": f"sha-256=:{base64.b64encode(bytes.fromhex(volume['sha256'])).decode()}:"}


def _key(key: str, index: int) -> str:
    return f"{PREFIX}/{key}/{index + 1}.zip"
