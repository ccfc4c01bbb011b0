"""Uploads as files: chunks are written in place into one of full size, which is renamed at the end."""

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

from delivery.files.spans import read_span
from delivery.upload.stores import BLOCK, Gone, NoRoom, Pieces, Slot
from ministream.base.errors import UserError
from ministream.base.files import explained

STEP = 128 << 10
"""Bytes written at a time: for more, Linux looks for memory that hangs together, which costs more than it saves."""

WRITERS = 64
"""Locks that uploads share, each of which lets one thread write."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class FileChunks:
    """Uploads below `folder`, of whose disk `spare` bytes are left free."""

    least, most, readable, in_place = 1, 1 << 40, True, True

    def __init__(self, folder: Path, spare: int = 0) -> None:
        self._folder, self._spare = folder.absolute(), spare
        self._open = self._folder / ".uploads"
        self._writers = [threading.Lock() for _ in range(WRITERS)]
        with explained(folder):
            self._open.mkdir(parents=True, exist_ok=True, mode=0o700)

    def begin(self, slot: Slot, *, exact: bool) -> str:
        """Reserve room, on the disk itself if the size is exact."""
        free = shutil.disk_usage(self._folder).free - self._spare
        if slot.size > free:
            raise NoRoom(f"{slot.size} bytes are asked for, {max(free, 0)} are free; send less, or ask for room")
        path = self._open / slot.id
        try:
            with path.open("xb") as file:
                if exact and slot.size:
                    os.posix_fallocate(file.fileno(), 0, slot.size)
        except OSError as error:
            with contextlib.suppress(OSError):
                path.unlink()
            raise self._told(error, path) from error
        return ""

    def put(self, slot: Slot, number: int, pieces: Pieces, at: int = 0) -> None:
        """Write bytes to their place: one thread at a time per file, as the system does, but without a fight for it."""
        path, start = f"{self._open}/{slot.id}", number * slot.chunk_size + at
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                for step in _steps(pieces):
                    with self._writer(slot):
                        os.stat(path)  # noqa: PTH116 - raises once it has its name: nobody writes to it any more then
                        start = _write(descriptor, start, step)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._told(error, Path(path)) from error

    def read(self, slot: Slot, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes from `start` up to, without, `stop`."""
        path = self._folder / slot.place if slot.place else self._open / slot.id
        try:
            yield from read_span(path, start, stop, BLOCK)
        except EOFError as error:
            raise Gone(str(error)) from error
        except OSError as error:
            raise self._told(error, path) from error

    def finish(self, slot: Slot) -> None:
        """Give the file its name; what lies there already is left alone."""
        source, place = self._open / slot.id, self._folder / slot.place
        with explained(place), self._writer(slot):
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                if source.stat().st_size != slot.size:
                    os.truncate(source, slot.size)
                os.link(source, place)
            except FileExistsError:  # linked before a kill
                if source.exists() and not source.samefile(place):
                    raise UserError(f"{place} was put there by somebody else; move it, then try again") from None
            except FileNotFoundError:
                if not place.exists():
                    raise Gone(f"neither {source} nor {place} is there any more") from None
            source.unlink(missing_ok=True)

    def drop(self, slot: Slot) -> None:
        """Delete the file."""
        with explained(self._open / slot.id):
            (self._open / slot.id).unlink(missing_ok=True)

    def has(self, place: str) -> bool:
        """Return whether something is at that place."""
        return os.path.lexists(self._folder / place)

    def _writer(self, slot: Slot) -> threading.Lock:
        return self._writers[hash(slot.id) % WRITERS]

    def _told(self, error: OSError, path: Path) -> UserError:
        if error.errno in _FULL:
            return NoRoom(f"{self._folder}: {error.strerror}; nothing that was verified is lost")
        if isinstance(error, FileNotFoundError):
            return Gone(f"{path.name}: this upload has ended")
        return UserError(f"{path}: {error.strerror}")


def _steps(pieces: Pieces) -> Iterator[memoryview]:
    for piece in pieces:
        for start in range(0, len(piece), STEP):
            yield memoryview(piece)[start : start + STEP]


def _write(descriptor: int, start: int, step: memoryview) -> int:
    """Write bytes, however few of them the system takes at a time; return where they end."""
    while step:
        written = os.pwrite(descriptor, step, start)
        start, step = start + written, step[written:]
    return start
