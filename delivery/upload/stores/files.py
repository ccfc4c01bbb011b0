"""Uploads as files: chunks are written in place into one of full size, which is renamed at the end."""

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from delivery.files.spans import read_span
from delivery.upload.stores import BLOCK, Gone, NoRoom, Pieces, Slot, Taken
from ministream.base.errors import UserError
from ministream.base.files import explained

STEP = 128 << 10
"""Bytes written at a time: for more, Linux looks for memory that hangs together, which costs more than it saves."""

WRITERS = 64
"""That uploads share: each has one file open at most."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class FileChunks:
    """Uploads below `folder`, of whose disk `spare` bytes are left free."""

    least, most, readable, in_place = 1, 1 << 40, True, True

    def __init__(self, folder: Path, spare: int = 0) -> None:
        self._folder, self._spare = folder.absolute(), spare
        self._open = self._folder / ".uploads"
        self._writers = [_Writer() for _ in range(WRITERS)]
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
        path, writer = self._open / slot.id, self._writer(slot)
        try:
            with writer.lock:
                writer.write(str(path), number * slot.chunk_size + at, pieces)
        except OSError as error:
            raise self._told(error, path) from error

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
        writer = self._writer(slot)
        with explained(place), writer.lock:
            writer.close()  # whoever writes from now on finds no file
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                if source.stat().st_size != slot.size:
                    os.truncate(source, slot.size)
                os.link(source, place)
            except (FileExistsError, NotADirectoryError):
                if not _is_same(source, place):  # else linked before a kill
                    raise Taken(f"{place}, or where it needs a folder, was put there by somebody else") from None
            except FileNotFoundError:
                if not place.exists():
                    raise Gone(f"neither {source} nor {place} is there any more") from None
            source.unlink(missing_ok=True)

    def drop(self, slot: Slot) -> None:
        """Delete the file."""
        writer = self._writer(slot)
        with explained(self._open / slot.id), writer.lock:
            writer.close()
            (self._open / slot.id).unlink(missing_ok=True)

    def obstacle(self, place: str) -> str:
        """Return the place if something is there, or the part of it that is there and is no folder; or nothing."""
        path = PurePosixPath(place)
        there = next((part for part in (path, *path.parents) if os.path.lexists(self._folder / part)), path.parent)
        return str(there) if there == path or not (self._folder / there).is_dir() else ""

    def _writer(self, slot: Slot) -> "_Writer":
        return self._writers[hash(slot.id) % WRITERS]

    def _told(self, error: OSError, path: Path) -> UserError:
        if error.errno in _FULL:
            return NoRoom(f"{self._folder}: {error.strerror}; nothing that was verified is lost")
        if isinstance(error, FileNotFoundError):
            return Gone(f"{path.name}: this upload has ended")
        return UserError(f"{path}: {error.strerror}")


def _is_same(source: Path, place: Path) -> bool:
    try:
        return source.samefile(place)
    except OSError:  # what is there is not where `place` says
        return False


class _Writer:
    """Who holds its `lock` may write; the file that was written to last stays open, since more will follow."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._path, self._descriptor = "", -1

    def write(self, path: str, start: int, pieces: Pieces) -> None:
        """Write to a file, however few bytes the system takes at a time; FileNotFoundError if it is not there."""
        if path != self._path:
            self.close()
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            self._path = path
        for piece in pieces:
            rest, done = memoryview(piece), 0
            while done < len(rest):
                done += os.pwrite(self._descriptor, rest[done : done + STEP], start + done)
            start += done

    def close(self) -> None:
        """Close the file, before it is renamed or deleted."""
        if self._path:
            os.close(self._descriptor)
            self._path = ""
