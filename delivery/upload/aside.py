"""Bytes that are kept in a file without a name: it goes with the process, and takes no memory that others need."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile

from delivery.upload.stores import NoRoom, Pieces

SOME = 128 << 10
"""Bytes read at a time: many threads may do so at once."""


class Aside:
    """Bytes as they came, to be gone over as often as somebody likes; `folder` is None for the system's own.

    Raises
    ------
    NoRoom
        In all that it does, if the folder's disk is full.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        try:
            self._file = TemporaryFile(dir=folder)  # noqa: SIM115 - it outlives this call
        except OSError as error:
            raise self._told(error) from error

    def add(self, pieces: Pieces) -> None:
        """Keep more bytes."""
        try:
            self._file.writelines(pieces)
            self._file.flush()
        except OSError as error:
            raise self._told(error) from error

    def __iter__(self) -> Iterator[bytes]:
        self._file.seek(0)
        while block := self._file.read(SOME):
            yield block

    def close(self) -> None:
        """Let go of them."""
        self._file.close()

    def _told(self, error: OSError) -> NoRoom:
        return NoRoom(f"{self._folder or 'the folder for temporary files'}: {error.strerror}; nothing verified is lost")
