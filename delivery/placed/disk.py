"""A site's disk: ``files`` holds what is on record, ``incoming`` what is not yet, or is not yet in its place.

A name in ``incoming`` says what it is: ``new-…`` an upload, ``ID.part`` a fetch, ``ID`` a file that is whole and
verified, whose record is being written, and which moves to ``files`` right after.
"""

import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from blake3 import blake3

from ministream.base.errors import UserError
from ministream.base.files import explained

BLOCK = 256 << 10
"""Bytes read, written or gathered at a time: with the number of files under way, what a site holds of them."""

_ID = re.compile(r"[0-9a-f]{32}")


class NoRoom(UserError):  # noqa: N818
    """The disk has no room for a file."""


class Disk:
    """The folder of one site, held by one process at a time.

    Parameters
    ----------
    folder
        Made if need be.
    spare
        Bytes of its file system that are left free.

    Raises
    ------
    UserError
        If it can't be made, or another process holds it.
    """

    def __init__(self, folder: Path, spare: int = 0) -> None:
        self.folder, self._spare = folder, spare
        self._files, self._incoming = folder / "files", folder / "incoming"
        with explained(folder):
            self._files.mkdir(parents=True, exist_ok=True)
            self._incoming.mkdir(exist_ok=True)
            self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise UserError(f"another site runs in {folder}; stop it, or give another --datadir") from error

    def close(self) -> None:
        """Let another process have it."""
        os.close(self._lock)

    def make_room(self, size: int, part: Path | None = None) -> None:
        """Raise NoRoom if a file of `size` bytes, of which `part` has the first already, would not fit."""
        if part and part.exists():
            size -= part.stat().st_size
        free = shutil.disk_usage(self.folder).free - self._spare
        if size > free:
            raise NoRoom(f"{size} bytes are needed, {max(free, 0)} are free; make room, or try again later")

    def new(self) -> Path:
        """Return a path for an upload."""
        return self._incoming / f"new-{secrets.token_hex(16)}"

    def part(self, id_: str) -> Path:
        """Return where a file that is being fetched is written."""
        return self._incoming / f"{id_}.part"

    def flush(self, aside: Path) -> None:
        """Have the bytes of a file on the disk for good; takes as long as the disk needs."""
        with explained(aside):
            _sync(aside)

    def ready(self, aside: Path, id_: str) -> None:
        """Note that what is in `aside`, flushed, is the whole file `id_`."""
        with explained(aside):
            aside.replace(self._incoming / id_)
            _sync(self._incoming)

    def file(self, id_: str) -> None:
        """Move a file that is `ready` to its place, unless it is there."""
        place = self._place(id_)
        with explained(place):
            if not place.parent.exists():
                place.parent.mkdir()
                _sync(self._files)
            if (self._incoming / id_).exists():
                (self._incoming / id_).replace(place)
                _sync(place.parent)

    def withdraw(self, id_: str) -> None:
        """Delete a file that is `ready`, but not on record; what lies in its place stays."""
        (self._incoming / id_).unlink(missing_ok=True)

    def find(self, id_: str) -> Path | None:
        """Return where the bytes of a file are; None if they are not here."""
        for path in (self._place(id_), self._incoming / id_, self._place(id_)):  # it may move in between
            if path.is_file():
                return path
        return None

    def delete(self, id_: str) -> None:
        """Delete a file's bytes, if they are here."""
        for path in (self._incoming / id_, self._place(id_)):
            path.unlink(missing_ok=True)

    def ids(self) -> Iterator[str]:
        """Yield the ids of all files that have been filed, in order."""
        for shelf in sorted(path for path in self._files.iterdir() if path.is_dir()):
            yield from sorted(path.name for path in shelf.iterdir() if _ID.fullmatch(path.name))

    def incoming(self) -> Iterator[tuple[Path, str, bool]]:
        """Yield what a kill left in ``incoming``: the path, its id ('' for uploads), and whether it is ready."""
        for path in sorted(self._incoming.iterdir()):
            id_ = path.name.removesuffix(".part")
            yield path, id_ if _ID.fullmatch(id_) else "", id_ == path.name

    def _place(self, id_: str) -> Path:
        return self._files / id_[:2] / id_


def identify(name: str, project: str, digest: str) -> str:
    """Return the id of a file, made from its name, its project and the BLAKE3 of its content."""
    return blake3(f"{name}\0{project}\0{digest}".encode()).hexdigest()[:32]


def digest_of(path: Path) -> tuple[int, str]:
    """Return the length in bytes and the BLAKE3 of a file."""
    digest, length = blake3(), 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK):
            digest.update(block)
            length += len(block)
    return length, digest.hexdigest()


def write_all(file: FileIO, block: bytes | memoryview) -> None:
    """Write a block whole: where the disk gets full, the system takes a part, and says so with the next one alone."""
    written = 0
    with memoryview(block) as view:
        while written < len(view):
            written += file.write(view[written:])


def is_whole(path: Path, size: int, digest: str) -> bool:
    """Say whether a file has the length and BLAKE3 that it should; one that can't be read has not."""
    try:
        return digest_of(path) == (size, digest)
    except FileNotFoundError:
        raise
    except OSError:
        return False


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
