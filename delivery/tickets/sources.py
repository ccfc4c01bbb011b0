"""The files that a ticket is for: found when it is queued, looked at again when it starts and when it is fetched."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple

from blake3 import blake3

from delivery.files.roots import Found, Refused, Root
from delivery.files.version import Stamp
from ministream.base.errors import UserError

_PER_FILE = 1200
"""Bytes that an archive needs at most beside a file's own and five times its name's: its records, its line in the
manifest, and what an archive has that is split off for it alone.
"""


class Unavailable(UserError):  # noqa: N818 - says what they are
    """Files that were asked for can't be had; `refused` says which, and why."""

    def __init__(self, refused: Sequence[Refused]) -> None:
        first = "; ".join(f"{path}: {reason}" for path, reason in refused[:3])
        super().__init__(f"{len(refused)} of the paths cannot be offered: {first}")
        self.refused = list(refused)


class Change(NamedTuple):
    """How files are now: the same paths with their present stamps, and which of them changed or are missing."""

    files: list[Found]
    changed: list[str]
    missing: list[str]

    @property
    def word(self) -> Literal["unchanged", "changed", "deleted"]:
        """Say it in one word; what is deleted weighs more."""
        return "deleted" if self.missing else "changed" if self.changed else "unchanged"


def select_files(root: Root, paths: Iterable[str]) -> list[Found]:
    """Find the files that `paths` mean, in order of path.

    Parameters
    ----------
    root
        Where they are.
    paths
        Relative POSIX paths, folders (which end in a slash), or patterns, whose `*` matches slashes, too.

    Raises
    ------
    Unavailable
        If one is missing, may not leave, or a pattern or folder has no files.
    """
    wanted = list(dict.fromkeys(paths))
    listing = root.find(path for path in wanted if not path.endswith("/"))
    chosen = {found.path: found for found in listing.files}
    patterns = [path for path in wanted if _is_pattern(path) and path not in chosen]
    refused = [item for item in listing.refused if not _is_pattern(item.path)]
    offered = root.scan().files if patterns else []
    for pattern in patterns:
        matching = [found for found in offered if _matches(found.path, pattern)]
        chosen.update((found.path, found) for found in matching)
        if not matching:
            refused.append(Refused(pattern, "no file matches"))
    if refused:
        raise Unavailable(refused)
    return [chosen[path] for path in sorted(chosen)]


def look_again(root: Root, files: Sequence[Found]) -> Change:
    """Look at files that were found before; one that is being written to counts as changed."""
    present = root.stamps(path for path, _ in files)
    there = [found for found in files if found.path in present]
    changed = [path for path, stamp in there if present[path] != stamp]
    now = [Found(path, present[path]) for path, _ in there] if changed else there
    missing = [path for path, _ in files if path not in present]
    return Change(now, changed, missing)


def room_for(files: Sequence[Found]) -> int:
    """Return how many bytes archives of these files have at most, without reading one of them."""
    return sum(stamp.size + _PER_FILE + 5 * len(path.encode()) for path, stamp in files)


def key_of(files: Sequence[Found], *, prepare: bool, volume: int, then: str) -> str:
    """Return the name of the artefact that a request has: the same for the same request on the same versions."""
    return blake3(repr((prepare, volume, then, [(path, *stamp) for path, stamp in files])).encode()).hexdigest(16)


def volumes_of(files: Sequence[Found], most: int) -> list[list[Found]]:
    """Divide files, in their order, into volumes of at most `most` bytes; a larger file has one to itself."""
    volumes: list[list[Found]] = [[]]
    room = most
    for found in files:
        if most and volumes[-1] and found.stamp.size > room:
            volumes.append([])
            room = most
        volumes[-1].append(found)
        room -= found.stamp.size
    return volumes


def packed(files: Iterable[Found]) -> list[list[object]]:
    """Return files as the database keeps them."""
    return [[path, *stamp] for path, stamp in files]


def unpacked(rows: Iterable[Sequence[Any]]) -> list[Found]:
    """Return what `packed` made."""
    return [Found(path, Stamp(size, mtime_ns, inode)) for path, size, mtime_ns, inode in rows]


def _is_pattern(path: str) -> bool:
    return path.endswith("/") or any(letter in path for letter in "*?[")


def _matches(path: str, pattern: str) -> bool:
    return path.startswith(pattern) if pattern.endswith("/") else fnmatchcase(path, pattern)
