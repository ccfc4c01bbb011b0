"""Digests that were taken once are kept in the database, and taken again only of files that changed."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice

from sqlalchemy import BigInteger, Column, ColumnElement, Engine, String, Table, and_, delete, select

from delivery.database import metadata, upsert, writing
from delivery.files.roots import Found, Root
from delivery.files.version import FileVersion, Stamp, digest

BATCH = 1000
"""Files asked for or remembered at a time: far below what a statement may hold, and little to lose in a crash."""

HELD = 50_000
"""Versions held in memory, some 500 bytes each."""

versions = Table(
    "file_versions",
    metadata,
    Column("root", String, primary_key=True),
    Column("path", String, primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("mtime_ns", BigInteger, nullable=False),
    Column("inode", BigInteger, nullable=False),
    Column("crc32", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("blake3", String(64), nullable=False),
)

_VERSION = [versions.c[name] for name in FileVersion._fields]


class Catalogue:
    """What is known of the files of any number of roots; for any number of threads and processes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._recent: dict[str, dict[str, FileVersion]] = {}

    def look(
        self, root: Root, files: Iterable[Found], progress: Callable[[FileVersion], None] | None = None
    ) -> list[FileVersion]:
        """Return the versions of `files`, in their order; reads only those that are new or changed.

        Parameters
        ----------
        root, files
            What to look at.
        progress
            Called with each version that had to be read.

        Raises
        ------
        SourceChanged
            If one changes meanwhile.
        """
        wanted = list(files)
        known = self._known(root, wanted)
        fresh = []
        for found in wanted:
            if found.path not in known:
                with root.open(found.path, found.stamp) as descriptor:
                    version = known[found.path] = digest(descriptor, found.path)
                fresh.append(version)
                if progress:
                    progress(version)
                if len(fresh) == BATCH:
                    self._remember(root, fresh)
                    fresh = []
        self._remember(root, fresh)
        return [known[found.path] for found in wanted]

    def forget(self, root: Root, paths: Sequence[str]) -> None:
        """Drop what is known of files that have left the root."""
        for path in paths:
            self._recent.get(str(root.folder), {}).pop(path, None)
        with writing(self._engine) as connection:
            for some in _batches(paths):
                connection.execute(delete(versions).where(_among(root, some)))

    def _known(self, root: Root, wanted: Sequence[Found]) -> dict[str, FileVersion]:
        """Return the versions that are known and still those of the files, by path."""
        folder = str(root.folder)
        stamps: dict[str, Stamp] = dict(wanted)
        recent = self._recent.get(folder, {})
        known = {path: recent[path] for path, stamp in wanted if path in recent and recent[path][1:4] == stamp}
        read: dict[str, FileVersion] = {}
        with self._engine.connect() as connection:
            for some in _batches([path for path in stamps if path not in known]):
                for row in connection.execute(select(*_VERSION).where(_among(root, some))).all():
                    version = FileVersion._make(row)
                    if version.stamp == stamps[version.path]:
                        read[version.path] = version
        self._keep(folder, read)
        return known | read

    def _keep(self, folder: str, known: Mapping[str, FileVersion]) -> None:
        """Hold versions in memory: a folder is looked at again and again, and a database costs ten times as much."""
        if sum(map(len, self._recent.values())) + len(known) > HELD:
            self._recent = {}
        self._recent.setdefault(folder, {}).update(islice(known.items(), HELD))

    def _remember(self, root: Root, fresh: Sequence[FileVersion]) -> None:
        if fresh:
            rows = [{"root": str(root.folder), **version._asdict()} for version in fresh]
            with writing(self._engine) as connection:
                upsert(connection, versions, rows)


def _among(root: Root, paths: Sequence[str]) -> ColumnElement[bool]:
    return and_(versions.c.root == str(root.folder), versions.c.path.in_(paths))


def _batches(paths: Sequence[str]) -> Iterator[Sequence[str]]:
    return (paths[start : start + BATCH] for start in range(0, len(paths), BATCH))
