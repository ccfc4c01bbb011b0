"""Output files: one HDF5 file per written window, whole or not there at all.

A file is made under a name that begins with a dot, its volume is written at the place that HDF5 gave it (the
blocks are reserved first: a full disk is noticed before a byte of data is), flushed to the disk, and only then
renamed to `NNNNNN-recon.h5`. A slab that is not the whole scan is written as `NNNNNN-recon.rowsA-B.h5`, and
whoever finishes the last slab joins them by a virtual dataset under the name above.
"""

import contextlib
import itertools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from aps_mini_apps.frames import RowRange
from ministream.base.errors import UserError
from ministream.base.files import explained, whole_or_absent

Attributes = Mapping[str, str | int | float]
Volume = npt.NDArray[np.float32]

_FINISHED = re.compile(r"\d{6}-recon(\.rows\d+-\d+)?\.h5")
EARLIER = "earlier"
"""Folder within the output folder to which the files of an earlier scan are moved."""

LONGEST_NAME = 100
"""Characters of a scan's name that its folder is called by."""


class ReconstructionWriter:
    """Writes the windows of one scan into one folder.

    Parameters
    ----------
    folder
        Made if missing; UserError if files cannot be written there.
    scan
        Identity of the scan. When its first file is written, the finished files of any other scan move to
        `earlier/<that scan>/`: nothing is overwritten, and two scans never mix in one folder.
    dataset
        Path of the volume in each file.
    """

    def __init__(self, folder: Path, scan: str, *, dataset: str = "/data") -> None:
        self.folder, self.scan, self.dataset = folder, scan, dataset
        self._cleared = False
        check_writable(folder)

    def write(
        self,
        window: int,
        volume: Volume,
        rows: RowRange,
        attributes: Attributes,
        monitor: Mapping[str, npt.NDArray[Any]] | None = None,
    ) -> Path:
        """Write window `window`: `volume` (slices, rows, columns), its attributes and its monitor datasets.

        Returns the path of the file. Raises UserError if the disk is full or the folder has gone; files that
        were finished before are not touched.
        """
        if not self._cleared:
            with explained(self.folder):
                self._set_earlier_scans_aside()
            self._cleared = True
        whole = self.folder / f"{window:06d}-recon.h5"
        about = {"scan": self.scan, "window": window, "first_row": rows.start, "total_rows": rows.total, **attributes}
        if rows.count == rows.total:
            write_volume(whole, self.dataset, volume, about, monitor or {})
            return whole
        part = whole.with_suffix(f".rows{rows.start}-{rows.stop - 1}.h5")
        write_volume(part, self.dataset, volume, about, monitor or {})
        with explained(whole):
            self._join(whole, rows.total)
        return part

    def _join(self, whole: Path, total: int) -> None:
        """Make the virtual file over all slabs of this window, if this was the last one of them."""
        parts = sorted(self.folder.glob(f"{whole.stem}.rows*.h5"), key=_first_row)
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(h5py.File(part, "r")) for part in parts]
            files = [file for file in files if file.attrs.get("scan") == self.scan]
            shapes = [file[self.dataset].shape for file in files]
            if sum(shape[0] for shape in shapes) != total:
                return
            layout = h5py.VirtualLayout((total, *shapes[0][1:]), np.float32)
            for file, shape in zip(files, shapes, strict=True):
                first = int(file.attrs["first_row"])
                source = h5py.VirtualSource(Path(file.filename).name, self.dataset, shape)
                layout[first : first + shape[0]] = source
            with whole_or_absent(whole) as path, h5py.File(path, "w") as joined:
                joined.create_virtual_dataset(self.dataset, layout)
                joined.attrs.update({**files[0].attrs, "first_row": 0})
                if "monitor" in (middle := files[len(files) // 2]):
                    middle.copy("monitor", joined)

    def _set_earlier_scans_aside(self) -> None:
        for path in sorted(self.folder.iterdir()):
            if _FINISHED.fullmatch(path.name) and (scan := scan_of(path)) != self.scan:
                place = _place_for(self.folder / EARLIER, scan, path.name)
                place.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(FileNotFoundError):  # another worker was quicker
                    path.replace(place / path.name)


def _place_for(folder: Path, scan: str, name: str) -> Path:
    """Return a folder in `folder` that is named after `scan`, which a peer has chosen, and has no file `name` yet."""
    safe = re.sub(r"[^\w-]", "_", scan)[:LONGEST_NAME] or "unknown"
    places = (folder / (f"{safe}.{count}" if count else safe) for count in itertools.count())
    return next(place for place in places if not (place / name).exists())


def check_writable(folder: Path) -> None:
    """Raise UserError unless files can be made in `folder`, which is made if missing."""
    probe = folder / f".probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"output folder {folder} cannot be written: {error.strerror}; choose another or mend its permissions"
        ) from error


def scan_of(path: Path) -> str:
    """Return the scan that an output file says it belongs to; empty where it does not say."""
    try:
        with h5py.File(path, "r") as file:
            return str(file.attrs.get("scan", ""))
    except OSError:
        return ""


def write_volume(
    path: Path, dataset: str, volume: Volume, attributes: Attributes, monitor: Mapping[str, npt.NDArray[Any]]
) -> None:
    """Write one HDF5 file, atomically: `dataset` float32, attributes at the root, `monitor` in `/monitor`."""
    data = np.ascontiguousarray(volume, "<f4")
    with whole_or_absent(path) as aside:
        with h5py.File(aside, "w") as file:
            file.attrs.update(attributes)
            for name, values in monitor.items():
                file.create_dataset(f"monitor/{name}", data=values)
            place = _reserve(file, dataset, data.shape)
        with aside.open("r+b") as raw:
            os.posix_fallocate(raw.fileno(), place, data.nbytes)
            raw.seek(place)
            raw.write(data.data)


def _reserve(file: h5py.File, dataset: str, shape: tuple[int, ...]) -> int:
    """Create a contiguous dataset whose place in the file is fixed at once, unfilled; return that place."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    space = h5py.h5s.create_simple(shape)
    made = h5py.h5d.create(file.id, dataset.encode(), h5py.h5t.IEEE_F32LE, space, dcpl=properties, lcpl=links)
    return int(made.get_offset())


def _first_row(path: Path) -> int:
    match = re.search(r"\.rows(\d+)-", path.name)
    return int(match.group(1)) if match else 0
