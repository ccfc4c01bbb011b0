"""Small files of kinds that compress, deflated ahead: an archive's layout needs their length.

Which are deflated depends on the files alone, never on what is cached, so that an archive that is asked for again, by
range or after a restart, is the same one.
"""

import os
import threading
from collections import OrderedDict

from isal import isal_zlib

from delivery.files.roots import Root
from delivery.files.version import FileVersion, check_unchanged

KINDS = (".csv", ".html", ".json", ".log", ".md", ".svg", ".txt", ".xml", ".yaml", ".yml")
"""Endings of names of files that shrink much."""

LARGEST = 256 << 10
"""Bytes of the largest file that is deflated."""

BUDGET = 16 << 20
"""Bytes of files that are deflated for one archive: they are read, and held, before its first byte is sent."""

_CACHE = 32 << 20
_RAW = -15  # window of 32 KiB, no header


def worth_packing(version: FileVersion) -> bool:
    """Return whether a file is small and of a kind that compresses."""
    return 0 < version.size <= LARGEST and version.path.lower().endswith(KINDS)


class Packer:
    """Deflates small files and remembers the most recent ones by their digest; for any number of threads."""

    def __init__(self) -> None:
        self._packed: OrderedDict[str, bytes] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()

    def pack(self, root: Root, version: FileVersion) -> bytes:
        """Return a file's bytes, deflated without header.

        Raises
        ------
        SourceChanged
            If the file is no longer this version.
        """
        with self._lock:
            if packed := self._packed.get(version.blake3):
                self._packed.move_to_end(version.blake3)
                return packed
        with root.open(version.path, version.stamp) as descriptor:
            content = os.pread(descriptor, version.size, 0)
            check_unchanged(descriptor, version.path, version.stamp)
        packed = isal_zlib.compress(content, level=1, wbits=_RAW)
        self._keep(version.blake3, packed)
        return packed

    def _keep(self, key: str, packed: bytes) -> None:
        with self._lock:
            if key not in self._packed:
                self._packed[key] = packed
                self._held += len(packed)
            while self._held > _CACHE:
                self._held -= len(self._packed.popitem(last=False)[1])
