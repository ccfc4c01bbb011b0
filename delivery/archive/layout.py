"""Where each byte of a zip archive will be, known before the first one is sent.

An archive is laid out from names, sizes and CRC-32s alone, so that its length and a strong ETag are known at once, and
any range of it can be read without what lies before. Files are stored as they are: reconstructions hardly compress, and
a deflated length is not known without deflating. Only small files of kinds that do compress are deflated ahead
(`packing`). The same files in the same order give the same bytes.

The last entry is a manifest with the digests of all others. Its name begins with a dot, which no file of a `Root` does.
"""

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from blake3 import blake3
from isal import isal_zlib

from delivery.archive.headers import (
    DEFLATED,
    STORED,
    Member,
    central_length,
    central_record,
    end_records,
    local_length,
    local_record,
)
from delivery.archive.packing import BUDGET, Packer, worth_packing
from delivery.files.roots import Root
from delivery.files.version import FileVersion
from ministream.base.errors import UserError

MANIFEST = ".MANIFEST.json"
"""Name of the last entry: {"files": [{"name", "size", "mtime_ns", "sha256", "blake3"}, …]}."""

LONGEST_NAME = 0xFFFF

_FORMAT = b"mini-stream zip 1"
"""Part of every ETag; to be changed with anything that changes the bytes of the same files."""

_packer = Packer()
_quoted = json.JSONEncoder(ensure_ascii=False).encode


class Entry(NamedTuple):
    """A file to be packed: its name in the archive, and what is known of it."""

    name: str
    version: FileVersion


class Piece(NamedTuple):
    """Bytes from `start` up to, without, `stop` of `source`: of bytes, or of a file's."""

    source: bytes | FileVersion
    start: int
    stop: int


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

    Attributes
    ----------
    length
        Bytes of the whole archive.
    etag
        Strong entity tag, quoted: the same for the same bytes only.

    Raises
    ------
    UserError
        If a name occurs twice or is not fit for an archive.
    SourceChanged
        If a small file, read to be deflated, is no longer the version that was given.
    """

    def __init__(self, root: Root, entries: Sequence[Entry], *, manifest: bool = True) -> None:
        _check_names(entries)
        self.root = root
        self._bodies = list(_bodies(root, entries))
        self._members = [_member(*entry, body) for entry, body in zip(entries, self._bodies, strict=True)]
        listed = _manifest(entries)
        if manifest:
            self._bodies.append(listed)
            self._members.append(_member(MANIFEST, _described(listed), listed))
        sizes = (local_length(member) + member.packed for member in self._members)
        self._starts = list(accumulate(sizes, initial=0))
        self._directory = self._starts.pop()
        self._directory_length = sum(map(central_length, self._members, self._starts))
        self.length = self._directory + self._directory_length + len(self._end())
        self.etag = f'"{self._digest(listed)}"'

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        """Yield what the archive's bytes from `start` up to, without, `stop` are made of, in order."""
        first = max(bisect_right(self._starts, start) - 1, 0)
        for at, source in self._sources(first):
            if at >= stop:
                return
            length = len(source) if isinstance(source, bytes) else source.size
            if at + length > start:
                yield Piece(source, max(start - at, 0), min(stop - at, length))

    def _sources(self, first: int) -> Iterator[tuple[int, bytes | FileVersion]]:
        """Yield where each run of bytes begins, and what it is, from the member number `first` on."""
        for index in range(first, len(self._members)):
            record = local_record(self._members[index])
            yield self._starts[index], record
            yield self._starts[index] + len(record), self._bodies[index]
        yield self._directory, b"".join(map(central_record, self._members, self._starts))
        yield self._directory + self._directory_length, self._end()

    def _end(self) -> bytes:
        return end_records(len(self._members), self._directory_length, self._directory)

    def _digest(self, listed: bytes) -> str:
        """Return a digest of all that the bytes depend on: the manifest says it of the files, whether sent or not."""
        digest = blake3(_FORMAT)
        digest.update(listed)
        for body in self._bodies:
            if isinstance(body, bytes):  # another release may deflate otherwise
                digest.update(body)
        return digest.hexdigest(16)


def _bodies(root: Root, entries: Sequence[Entry]) -> Iterator[bytes | FileVersion]:
    """Yield what the archive holds for each file: its deflated bytes, or the file itself."""
    budget = BUDGET
    for _, version in entries:
        body: bytes | FileVersion = version
        if worth_packing(version) and version.size <= budget:
            budget -= version.size
            packed = _packer.pack(root, version)
            body = packed if len(packed) < version.size else version
        yield body


def _member(name: str, version: FileVersion, body: bytes | FileVersion) -> Member:
    packed = len(body) if isinstance(body, bytes) else body.size
    method = STORED if packed == version.size else DEFLATED
    return Member(name.encode(), method, version.crc32, packed, version.size, version.mtime_ns)


def _manifest(entries: Sequence[Entry]) -> bytes:
    """Return the manifest; written by hand, since `json` takes three times as long and each first byte waits for it."""
    files = [
        f'{{"name":{_quoted(name)},"size":{size},"mtime_ns":{mtime_ns},"sha256":"{sha256}","blake3":"{blake3}"}}'
        for name, (_, size, mtime_ns, _, _, sha256, blake3) in entries
    ]
    return ('{"files":[\n' + ",\n".join(files) + "\n]}\n").encode()


def _described(manifest: bytes) -> FileVersion:
    return FileVersion(MANIFEST, len(manifest), 0, 0, isal_zlib.crc32(manifest), "", "")


def _check_names(entries: Sequence[Entry]) -> None:
    names = {entry.name for entry in entries}
    if len(names) != len(entries):
        raise UserError("two files would have one name in the archive; ask for them in two")
    for name in names:
        if not name or name[0] == "/" or name == MANIFEST or len(name.encode()) > LONGEST_NAME:
            raise UserError(f"{name[:80]!r} is no name for a file in an archive")
