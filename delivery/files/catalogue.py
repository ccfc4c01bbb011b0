"""Digests that were taken once are kept in the database, and taken again only of files that changed."""

from collections.abc import Callable, Iterable, Sequence

from sqlalchemy import BigInteger, Column, Engine, String, Table

from delivery.database import metadata
from delivery.files.roots import Found, Root
from delivery.files.version import FileVersion

versions = Table(
    "file_versions",
    metadata,
    Column("root", String, primary_key=True),
    Column("path", String, primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("mtime_ns", BigInteger, nullable=False),
    Column("inode", String, nullable=False),
    Column("crc32", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("blake3", String(64), nullable=False),
)


class Catalogue:
    """What is known of the files of any number of roots."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def look(
        self, root: Root, files: Iterable[Found], progress: Callable[[FileVersion], None] | None = None
    ) -> list[FileVersion]:
        """Return the versions of `files`, in their order; reads only those that are new or changed.

        Raises
        ------
        SourceChanged
            If one changes meanwhile.
        """
        raise NotImplementedError

    def forget(self, root: Root, paths: Sequence[str]) -> None:
        """Drop what is known of files that have left the root."""
        raise NotImplementedError
