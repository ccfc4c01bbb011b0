"""One idea of a file: its name, the stamp that tells cheaply whether it changed, and the digests of its bytes."""

import hashlib
import os
import stat
from typing import NamedTuple

from blake3 import blake3
from isal import isal_zlib

from ministream.base.errors import UserError

BLOCK = 1 << 20
"""Bytes read at a time: they stay in the processor's cache from one digest to the next."""

_SIGNED = (1 << 63) - 1
"""Inodes have 64 bits, integers of databases one less."""


class SourceChanged(UserError):  # noqa: N818 - says what happened
    """A file is no longer the one that was looked at; what was prepared from it must be prepared anew."""


class Stamp(NamedTuple):
    """What changes when a file does: compared wherever its bytes are used, for digests would cost a pass."""

    size: int
    mtime_ns: int
    inode: int


class FileVersion(NamedTuple):
    """One version of a file; a tuple, since requests hold ten thousand of them.

    Parameters
    ----------
    path
        POSIX path relative to its root.
    size, mtime_ns, inode
        Its `Stamp`: bytes, nanoseconds since 1970, number of the inode.
    crc32, sha256, blake3
        Digests of its bytes; the last two in hexadecimal.
    """

    path: str
    size: int
    mtime_ns: int
    inode: int
    crc32: int
    sha256: str
    blake3: str

    @property
    def stamp(self) -> Stamp:
        """What a file must still have to be this version."""
        return Stamp(self.size, self.mtime_ns, self.inode)


def stamp_of(status: os.stat_result) -> Stamp:
    """Return the stamp within what `stat` returned."""
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ino & _SIGNED)


def check_unchanged(descriptor: int, path: str, stamp: Stamp) -> None:
    """Raise SourceChanged unless the open file is a regular one with this stamp."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or stamp_of(status) != stamp:
        raise SourceChanged(f"{path} has changed since it was looked at; ask for it again")


def digest(descriptor: int, path: str) -> FileVersion:
    """Read an open file once and return its version.

    Raises
    ------
    SourceChanged
        If it changed while it was read.
    """
    stamp = stamp_of(os.fstat(descriptor))
    crc, sha, blake = 0, hashlib.sha256(), blake3()
    for start in range(0, stamp.size, BLOCK):
        block = os.pread(descriptor, BLOCK, start)
        crc = isal_zlib.crc32(block, crc)
        sha.update(block)
        blake.update(block)
    check_unchanged(descriptor, path, stamp)
    return FileVersion(path, *stamp, crc, sha.hexdigest(), blake.hexdigest())
