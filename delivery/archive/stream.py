"""The bytes of a zip archive, of any range of it, read from the files that it is laid out from."""

from collections.abc import Iterator

from delivery.archive.layout import Layout

BLOCK = 1 << 20
"""Most bytes yielded at a time."""


class Archive:
    """Content that a `RangeResponse` can send: a layout's bytes."""

    def __init__(self, layout: Layout) -> None:
        self.length, self.etag = layout.length, layout.etag

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes from `start` up to, without, `stop`.

        Raises
        ------
        SourceChanged
            If a file is no longer what was laid out, and before the last of its bytes is yielded.
        """
        raise NotImplementedError
