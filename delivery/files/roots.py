"""A folder that files are offered from, and the rules of what may leave it.

Offered are regular files whose names are UTF-8 text without control characters, that don't begin with a dot nor end
as half-written ones do, and that nobody has written to for `settle` seconds. Symbolic links are never followed below
the root: a file is offered under its own name, once, and no link that somebody plants (or swaps in between a look and
an opening) leads elsewhere. Names that differ only in case or in Unicode's composition would overwrite one another
where they are unpacked: none of them is offered, each is reported.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from delivery.files.version import Stamp
from ministream.base.errors import UserError

SETTLE = 2.0
"""Seconds without a write after which a file counts as finished; writers that rename need none."""

UNFINISHED = (".part", ".partial", ".tmp", ".temp", ".crdownload", ".lock", "~")
"""Endings of names that programs write under before they rename."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a FIFO must not hold the opener


class Found(NamedTuple):
    """A file that may leave: its POSIX path relative to the root, and its stamp."""

    path: str
    stamp: Stamp


class Refused(NamedTuple):
    """A file that may not leave, and why; `path` is printable whatever the name was."""

    path: str
    reason: str


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
        Seconds since 1970, for tests.

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
        """Look at all files, or at those in the folder `under`."""
        raise NotImplementedError

    def find(self, paths: Iterable[str]) -> Listing:
        """Look at the files with these paths; those that are missing or may not leave are among the refused."""
        raise NotImplementedError

    @contextmanager
    def open(self, path: str, stamp: Stamp | None = None) -> Iterator[int]:
        """Open a file of this root for reading: yields its descriptor.

        Parameters
        ----------
        path
            POSIX path relative to the root.
        stamp
            What the file must still have.

        Raises
        ------
        UserError
            If the path leads out of the root, through a link, or to what is no regular file.
        SourceChanged
            If the file is gone or has another stamp.
        """
        raise NotImplementedError
        yield
