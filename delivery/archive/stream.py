"""The bytes of a zip archive, or of any range of it, read from the files that it is laid out from."""

import os
from collections.abc import Iterator

from delivery.archive.layout import Layout, Piece
from delivery.files.roots import Root
from delivery.files.version import FileVersion, SourceChanged, check_unchanged

BLOCK = 1 << 20
"""Most bytes read at a time."""

SMALL = 64 << 10
"""Blocks shorter than this are joined: ten thousand little files are not ten thousand writes to a socket."""


class Archive:
    """Content that a `RangeResponse` can send: a layout's bytes."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.length, self.etag = layout.length, layout.etag

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes from `start` up to, without, `stop`.

        Raises
        ------
        SourceChanged
            Before the last of a file's bytes, if the file is no longer what was laid out.
        """
        return _joined(self._blocks(start, stop))

    def _blocks(self, start: int, stop: int) -> Iterator[bytes]:
        for piece in self._layout.pieces(start, stop):
            if isinstance(piece.source, bytes):
                yield piece.source[piece.start : piece.stop]
            else:
                yield from _read_file(self._layout.root, piece.source, piece)


def _read_file(root: Root, version: FileVersion, piece: Piece) -> Iterator[bytes]:
    with root.open(version.path, version.stamp) as descriptor:
        at = piece.start
        while at < piece.stop:
            block = os.pread(descriptor, min(BLOCK, piece.stop - at), at)
            if not block:
                raise SourceChanged(f"{version.path} has become shorter while it was sent")
            at += len(block)
            if at == piece.stop:
                check_unchanged(descriptor, version.path, version.stamp)
            yield block


def _joined(blocks: Iterator[bytes]) -> Iterator[bytes]:
    small: list[bytes] = []
    held = 0
    for block in blocks:
        if len(block) < SMALL:
            small.append(block)
            held += len(block)
        if held >= SMALL or (held and len(block) >= SMALL):
            yield b"".join(small)
            small, held = [], 0
        if len(block) >= SMALL:
            yield block
    if held:
        yield b"".join(small)
