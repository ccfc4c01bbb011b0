"""Zips that came: are they what was sent, and what is in them.

Names in a zip are the sender's word. A parcel with one that would lead out of the folder where it is unpacked, or hide
there, is refused as a whole.
"""

import json
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from blake3 import blake3

from delivery.archive.layout import MANIFEST
from delivery.files.aside import written_aside
from ministream.base.errors import UserError

_BLOCK = 1 << 20
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError, RuntimeError, ValueError, TypeError)


class Damaged(UserError):  # noqa: N818 - says what is wrong
    """A zip is not what was sent, or none that may be unpacked."""


def verify(path: Path) -> dict[str, str]:
    """Read a zip and return the BLAKE3 of each file in it, by name.

    All must be as its manifest says, or, if it has none, as its CRC-32s say.

    Raises
    ------
    Damaged
        If something is not.
    """
    with _opened(path) as parcel:
        found = {info.filename: _digest(parcel, info) for info in _files(parcel)}
        if MANIFEST in parcel.namelist():
            listed = {file["name"]: file["blake3"] for file in json.loads(parcel.read(MANIFEST))["files"]}
            wrong = sorted(name for name in found.keys() | listed.keys() if found.get(name) != listed.get(name))
            if wrong:
                raise Damaged(f"{path.name}: {len(wrong)} files are not as its manifest says, first {wrong[0]!r}")
    return found


def unpack(path: Path, folder: Path) -> int:
    """Write the files in a zip to `folder`, each whole or not at all, and return their number."""
    with _opened(path) as parcel:
        files = _files(parcel)
        for info in files:
            place, unpacked = folder / info.filename, folder / f".{path.name}.unpacking"
            with written_aside(place, unpacked) as aside, parcel.open(info) as packed, aside.open("wb") as file:
                shutil.copyfileobj(packed, file, _BLOCK)
    return len(files)


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as parcel:
            yield parcel
    except UserError:
        raise
    except _BROKEN as error:
        raise Damaged(f"{path.name} is damaged: {error}") from error


def _files(parcel: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """Return the files in a zip but its manifest, once their names have been judged."""
    files = [info for info in parcel.infolist() if not info.is_dir() and info.filename != MANIFEST]
    names = [info.filename for info in files]
    if len(set(names)) < len(names):
        raise Damaged("two files in the zip have one name")
    for name in names:
        parts = PurePosixPath(name).parts
        if parts[0] == "/" or "\\" in name or not name.isprintable() or any(part[0] == "." for part in parts):
            raise Damaged(f"{name[:200]!a} in the zip is no name to be unpacked")
    return files


def _digest(parcel: zipfile.ZipFile, info: zipfile.ZipInfo) -> str:
    digest = blake3()
    with parcel.open(info) as packed:  # which compares the CRC-32 at the end
        while block := packed.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
