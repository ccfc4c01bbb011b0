"""Where each byte of a zip archive will be, known before the first one is sent.

An archive is laid out from names, sizes and CRC-32s alone, so that its length and a strong ETag are known at once and
any range of it can be read without what lies before. Files are stored as they are: reconstructions hardly compress, and
a deflated length is not known without deflating. Small files of kinds that do compress are deflated when the archive is
laid out, within a budget. The same files in the same order give the same bytes; sizes and offsets beyond 32 bits and
counts beyond 16 bits take ZIP64's fields. Format: PKWARE's APPNOTE 6.3.10.

The last entry is a manifest with the digests of all others. Its name begins with a dot, which no file of a `Root` does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from delivery.files.roots import Root
from delivery.files.version import FileVersion

MANIFEST = ".MANIFEST.json"
"""Name of the last entry: {"files": [{"name", "size", "mtime_ns", "sha256", "blake3"}, …]}."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file to be packed: its name in the archive, and what is known of it."""

    name: str
    version: FileVersion


class Layout:
    """A zip archive that exists as a plan.

    Parameters
    ----------
    root
        Where the files are.
    entries
        What to pack, in this order.
    manifest
        Whether the last entry is a manifest.

    Raises
    ------
    UserError
        If a name occurs twice or is not fit for an archive.
    """

    length: int
    """Bytes of the whole archive."""
    etag: str
    """Strong entity tag, quoted: the same for the same bytes only."""

    def __init__(self, root: Root, entries: Sequence[Entry], *, manifest: bool = True) -> None:
        raise NotImplementedError
