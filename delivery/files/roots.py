"""A folder that files are offered from, and the rules of what may leave it.

Offered are regular files whose names are UTF-8 text without control characters, that don't begin with a dot nor end
as half-written ones do, and that nobody has written to for `settle` seconds. Symbolic links are never followed below
the root: a file is offered under its own name, once, and no link that somebody plants (or swaps in between a look and
an opening) leads elsewhere. Names that differ only in case or in Unicode's composition would overwrite one another
where they are unpacked: none of them is offered, each is reported.
"""

import os
import stat
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from delivery.files.version import SourceChanged, Stamp, check_unchanged, stamp_of
from ministream.base.errors import UserError

SETTLE = 2.0
"""Seconds without a write after which a file counts as finished."""

UNFINISHED = (".part", ".partial", ".tmp", ".temp", ".crdownload", "~")
"""Endings of names that programs write under before they rename."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # opening a FIFO must not wait for its writer


class Found(NamedTuple):
    """A file that may leave: its POSIX path relative to the root, and its stamp."""

    path: str
    stamp: Stamp


class Refused(NamedTuple):
    """A file that may not leave, and why; `path` is printable whatever the name was."""

    path: str
    reason: str


_by_path = itemgetter(0)


class Listing(NamedTuple):
    """What a look at a root found, both parts in order of path."""

    files: list[Found]
    refused: list[Refused]


class Root:
    """A folder whose files may leave it.

    Parameters
    ----------
    folder
        The folder; itself it may be a link.
    settle
        Seconds without a write after which a file counts as finished.
    clock
        Returns the seconds since 1970.

    Raises
    ------
    UserError
        If there is no such folder.
    """

    def __init__(self, folder: Path, *, settle: float = SETTLE, clock: Callable[[], float] = time.time) -> None:
        self.folder = folder.resolve()
        self._settle, self._clock = settle, clock
        if not self.folder.is_dir():
            raise UserError(f"{folder} is no folder; make it, or give another one")

    def scan(self, under: str = "") -> Listing:
        """Look at all files, or at those in the folder `under`.

        Raises
        ------
        UserError
            If `under` is no folder of this root.
        """
        look = _Look(self._clock() - self._settle)
        with self._folder(_parts(under) if under else [], under) as descriptor:
            look.walk(descriptor, f"{under}/" if under else "")
        return look.listing()

    def find(self, paths: Iterable[str]) -> Listing:
        """Look at the files with these paths; those that are missing or may not leave are among the refused."""
        look = _Look(self._clock() - self._settle)
        for path in dict.fromkeys(paths):
            try:
                with self.open(path) as descriptor:
                    look.judge(path, path.rpartition("/")[2], os.fstat(descriptor))
            except UserError as error:
                look.refuse(path, str(error).removeprefix(f"{_printable(path)}: "))
        return look.listing()

    def stamps(self, paths: Iterable[str]) -> dict[str, Stamp]:
        """Return the present stamps of files that were found before, by path; without those that are no more.

        Paths of one folder are best given one after another: each folder is then opened once.
        """
        present: dict[str, Stamp] = {}
        for folder, some in groupby(paths, _folder_of):
            try:
                with self._folder(_parts(folder) if folder else [], folder) as descriptor:
                    present.update(_stamps(descriptor, some))
            except UserError:  # the folder is gone
                continue
        return present

    @contextmanager
    def open(self, path: str, stamp: Stamp | None = None) -> Iterator[int]:
        """Open a file of this root for reading: yields its descriptor.

        Parameters
        ----------
        path
            POSIX path relative to the root.
        stamp
            What the file must still have, if it has been looked at before.

        Raises
        ------
        UserError
            If the path leads out of the root, through a link, or to nothing that may leave.
        SourceChanged
            If a stamp is given and what is there now has another one, or nothing is there any more.
        """
        *folders, name = _parts(path)
        try:
            with self._folder(folders, path) as folder:
                descriptor = _open(name, _FILE, folder, path)
        except UserError as error:
            raise SourceChanged(str(error)) if stamp else error from error
        try:
            if stamp:
                check_unchanged(descriptor, path, stamp)
            elif not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UserError(f"{_printable(path)} is no regular file")
            yield descriptor
        finally:
            os.close(descriptor)

    def remove(self, path: str, stamp: Stamp) -> None:
        """Delete a file; one that is already gone is left so.

        Raises
        ------
        SourceChanged
            If what is there has another stamp: nobody asked for that to be deleted.
        """
        *folders, name = _parts(path)
        try:
            with self._folder(folders, path) as folder:
                descriptor = _open(name, _FILE, folder, path)
                try:
                    check_unchanged(descriptor, path, stamp)
                    os.unlink(name, dir_fd=folder)
                finally:
                    os.close(descriptor)
        except UserError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise

    @contextmanager
    def _folder(self, parts: list[str], path: str) -> Iterator[int]:
        """Open a folder below the root name by name, so that no link is followed on the way."""
        descriptor = os.open(self.folder, _FOLDER)
        try:
            for part in parts:
                inner = _open(part, _FOLDER, descriptor, path)
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        finally:
            os.close(descriptor)


class _Look:
    """One look at a root: files last written to before `settled` (seconds since 1970) are finished."""

    def __init__(self, settled: float) -> None:
        self._settled = settled * 1e9
        self._files: list[Found] = []
        self._refused: list[Refused] = []

    def walk(self, descriptor: int, prefix: str) -> None:
        """Judge what lies in an open folder and below."""
        with os.scandir(descriptor) as entries:
            for entry in entries:
                path = prefix + entry.name
                try:
                    if entry.is_dir(follow_symlinks=False):
                        self._enter(descriptor, entry.name, path)
                    else:
                        self.judge(path, entry.name, entry.stat(follow_symlinks=False))
                except OSError as error:  # gone since the folder was read
                    self.refuse(path, error.strerror or "gone")

    def _enter(self, descriptor: int, name: str, path: str) -> None:
        if reason := _unfit(name):
            self.refuse(path, reason)
            return
        try:
            inner = _open(name, _FOLDER, descriptor, path)
        except UserError as error:
            self.refuse(path, str(error))
            return
        try:
            self.walk(inner, f"{path}/")
        finally:
            os.close(inner)

    def judge(self, path: str, name: str, status: os.stat_result) -> None:
        """Put a file among those that may leave, or among those that may not."""
        if reason := _unfit(name) or _unfit_kind(status.st_mode):
            self.refuse(path, reason)
        elif status.st_mtime_ns > self._settled:
            self.refuse(path, "written to a moment ago, perhaps not finished")
        else:
            self._files.append(Found(path, stamp_of(status)))

    def refuse(self, path: str, reason: str) -> None:
        """Put a file among those that may not leave."""
        self._refused.append(Refused(_printable(path), reason))

    def listing(self) -> Listing:
        """Return what was found, without names that would overwrite one another."""
        names = [_unpacked(found.path) for found in self._files]
        files = self._files
        if len(set(names)) < len(names):
            count = Counter(names)
            files = [found for found, name in zip(files, names, strict=True) if count[name] == 1]
            for found in set(self._files).difference(files):
                self.refuse(found.path, "its name differs from another one's only in case or in Unicode's composition")
        return Listing(sorted(files, key=_by_path), sorted(self._refused))


def _stamps(folder: int, paths: Iterable[str]) -> Iterator[tuple[str, Stamp]]:
    """Yield path and stamp of those files in an open folder that are still there."""
    for path in paths:
        try:
            status = os.stat(path.rpartition("/")[2], dir_fd=folder, follow_symlinks=False)
        except (OSError, ValueError):
            continue
        if stat.S_ISREG(status.st_mode):
            yield path, stamp_of(status)


def _folder_of(path: str) -> str:
    return path.rpartition("/")[0]


def _parts(path: str) -> list[str]:
    """Divide a relative POSIX path into names, each of which may be offered."""
    parts = path.split("/")
    for part in parts:
        if reason := "empty, absolute or leading upwards" if part in ("", ".", "..") else _unfit(part):
            raise UserError(f"{_printable(path)}: this path is refused: {reason}")
    return parts


def _unfit(name: str) -> str:
    """Return why a file or folder of this name is not offered; nothing if it is."""
    if name[0] != "." and name.isprintable() and not name.endswith(UNFINISHED):
        return ""  # nearly always, and asked ten thousand times a request
    if name[0] == ".":
        return "names that begin with a dot are hidden"
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
        return "its name is not UTF-8 text, or has control characters"
    return "half-written, by its name" if name.endswith(UNFINISHED) else ""


def _unfit_kind(mode: int) -> str:
    if stat.S_ISREG(mode):
        return ""
    return "a symbolic link" if stat.S_ISLNK(mode) else "no regular file"


def _open(name: str, flags: int, folder: int, path: str) -> int:
    try:
        return os.open(name, flags, dir_fd=folder)
    except (OSError, ValueError) as error:  # a NUL in the name
        reason = getattr(error, "strerror", None) or "no such name"
        raise UserError(f"{_printable(path)} cannot be offered: {reason}") from error


def _unpacked(path: str) -> str:
    """Return what all names have in common that a folder elsewhere may take for the same."""
    return path.lower() if path.isascii() else unicodedata.normalize("NFC", path).casefold()


def _printable(path: str) -> str:
    return path if path.isprintable() else ascii(path)[1:-1]
