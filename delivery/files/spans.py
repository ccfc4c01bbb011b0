"""Parts of files, read block by block: what the ranges of requests come down to."""

from collections.abc import Iterator
from pathlib import Path


def read_span(path: Path, start: int, stop: int, block: int) -> Iterator[bytes]:
    """Yield the bytes of a file from `start` up to, without, `stop`, at most `block` at a time.

    Raises
    ------
    EOFError
        If the file ends before `stop`.
    OSError
        If it can't be read.
    """
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while start < stop:
            some = file.read(min(block, stop - start))
            if not some:
                raise EOFError(f"{path} is shorter than it was")
            start += len(some)
            yield some
