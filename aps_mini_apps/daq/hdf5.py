"""Scans in HDF5 files of the DXchange layout, read block by block: memory does not grow with the file.

Where a file is silent, the first of these that it holds is taken:

- flats, darks: `data_white`, `data_dark`; if missing or all zero, one constant frame of
  `/process/acquisition/flat_fields/flat_field_value`, `…/dark_fields/dark_field_value`. A file that says
  nothing of darks has zero ones, with a warning; one that says nothing of flats cannot be corrected.
- angles: `theta`, in degrees unless its attribute `units` says radians; `rotation_start` and `rotation_step`
  in `/process/acquisition/rotation`; else, with a warning, equal steps from 0 to 180 degrees, both included,
  which is what DXchange's reader and the APS mini-apps make of such a file.

Invalid pixels (NaN, infinities) pass: they are the correction's business.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import h5py
import hdf5plugin  # noqa: F401 - on import it gives HDF5 its filters: blosc, LZ4, zstd, …
import numpy as np
import numpy.typing as npt

from aps_mini_apps.daq.sources import Pixels
from aps_mini_apps.frames import RowRange
from aps_mini_apps.geometry import equal_angles
from ministream.base.errors import UserError
from ministream.base.log import get_logger

BLOCK_BYTES = 32 * 2**20
"""Most that is read at once, a single larger frame apart: enough for a disk to run at full speed."""

ACQUISITION = "/process/acquisition"


def open_scan(
    path: str | Path,
    *,
    exchange: str = "exchange",
    rows: slice | None = None,
    columns: slice | None = None,
    projections: slice | None = None,
) -> "HDF5Source":
    """Open a DXchange file; the result is a context manager that closes it.

    Parameters
    ----------
    path
        The file.
    exchange
        Group that holds the scan: `exchange` for raw data, `exchange1`, … for processed ones.
    rows, columns, projections
        Part of the scan, as slices with step 1; None takes all.

    Raises
    ------
    UserError
        If the file cannot be read, is not DXchange, or does not hold what is asked for.
    """
    file = _open(Path(path))
    try:
        return HDF5Source(file, f"/{exchange.strip('/')}", rows, columns, projections)
    except BaseException:
        file.close()
        raise


class HDF5Source:
    """A scan in an open HDF5 file (see `sources.Source`); made by `open_scan`."""

    def __init__(
        self,
        file: h5py.File,
        group: str,
        rows: slice | None = None,
        columns: slice | None = None,
        projections: slice | None = None,
    ) -> None:
        self._file = file
        self.name = Path(file.filename).name
        self.center: float | None = None
        data = _find_data(file, group)
        count, *size = data.shape
        chosen = _bounds(file, projections, count, "projections")
        region = _bounds(file, rows, size[0], "rows"), _bounds(file, columns, size[1], "columns")
        self.rows, self.columns = (len(part) for part in region)
        self.detector_rows = RowRange(start=region[0].start, stop=region[0].stop, total=size[0])
        self._projections = _Stack(data, chosen, region)
        self.angles = _find_angles(file, group, count)[chosen.start : chosen.stop]
        self._flats = _find_flats(file, group, self._projections)
        self._darks = _find_darks(file, group, self._projections)
        self.flat_count, self.dark_count = self._flats.count, self._darks.count

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def flats(self) -> Iterator[Pixels]:
        """Yield the flats, each (rows, columns)."""
        return self._flats.read(range(self.flat_count))

    def darks(self) -> Iterator[Pixels]:
        """Yield the darks, each (rows, columns)."""
        return self._darks.read(range(self.dark_count))

    def projections(self, order: Sequence[int]) -> Iterator[Pixels]:
        """Yield the projections with these indices, each (rows, columns)."""
        return self._projections.read(order)


class _Frames(Protocol):
    @property
    def count(self) -> int: ...
    def read(self, order: Iterable[int]) -> Iterator[Pixels]: ...


class _Stack:
    """Frames in a dataset (frame, row, column), cut to a region."""

    def __init__(self, dataset: h5py.Dataset, chosen: range, region: tuple[range, range]) -> None:
        self.dataset, self.chosen, self.region = dataset, chosen, region
        self.dtype: np.dtype[Any] = dataset.dtype.newbyteorder("=")
        self.count = len(chosen)
        frame_bytes = math.prod(map(len, region)) * self.dtype.itemsize
        fitting = max(1, BLOCK_BYTES // frame_bytes)
        depth = dataset.chunks[0] if dataset.chunks else 1
        # a chunk is unpacked whole: cut between chunks where whole ones fit
        self._block = fitting - fitting % depth or fitting

    def read(self, order: Iterable[int]) -> Iterator[Pixels]:
        """Yield the frames with these indices into `chosen`; neighbours are views of one block."""
        rows, columns = (slice(part.start, part.stop) for part in self.region)
        for begin, end in _runs((self.chosen[index] for index in order), self._block):
            try:
                block = self.dataset.astype(self.dtype)[begin:end, rows, columns]
            except OSError as error:
                raise UserError(
                    f"{self.dataset.file.filename}: frames {begin} to {end - 1} of {self.dataset.name} cannot "
                    f"be read ({_reason(error)}); copy the file again from where it was taken"
                ) from error
            yield from block

    def is_zero(self) -> bool:
        """Whether no pixel of any frame differs from zero; reads no further than to the first that does."""
        return not any(frame.any() for index in range(self.count) for frame in self.read([index]))


class _Constant:
    """One frame of the same value everywhere, like those of `stack`."""

    count = 1

    def __init__(self, value: float, stack: _Stack) -> None:
        exact = np.issubdtype(stack.dtype, np.floating) or _fits(value, stack.dtype)
        self._shape = tuple(map(len, stack.region))
        self._value, self._dtype = value, stack.dtype if exact else np.dtype(np.float32)

    def read(self, order: Iterable[int]) -> Iterator[Pixels]:
        """Yield the frame for every index; each is the caller's own."""
        for _ in order:
            yield np.full(self._shape, self._value, self._dtype)


def _fits(value: float, dtype: np.dtype[Any]) -> bool:
    limits = np.iinfo(dtype)
    return value.is_integer() and limits.min <= value <= limits.max


def _runs(indices: Iterable[int], block: int) -> Iterator[tuple[int, int]]:
    """Join consecutive indices into ranges (begin, end) that cross no multiple of `block`."""
    begin = end = -1
    for index in indices:
        if index != end or index % block == 0:
            if begin < end:
                yield begin, end
            begin = index
        end = index + 1
    if begin < end:
        yield begin, end


def _open(path: Path) -> h5py.File:
    if not path.exists():
        raise UserError(f"{path}: no such file; give the path of an HDF5 file")
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the path of an HDF5 file")
    try:
        if not h5py.is_hdf5(path):
            with path.open("rb"):
                raise UserError(f"{path} is not an HDF5 file; give one of the DXchange layout")
        return h5py.File(path, "r")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({_reason(error)}); is it complete, and are you allowed to?") from error


def _reason(error: OSError) -> str:
    return error.strerror or " ".join(str(error).split())


def _find_data(file: h5py.File, group: str) -> h5py.Dataset:
    data = _dataset(file, f"{group}/data")
    if data is None:
        raise UserError(f"{file.filename}: no dataset {group}/data; {_contents(file, group)}")
    _check_frames(data)
    return data


def _contents(file: h5py.File, group: str) -> str:
    """Say what there is instead of `group`/data."""
    present = file.get(group)
    if isinstance(present, h5py.Group):
        return f"{group} holds {', '.join(present) or 'nothing'}"
    exchanges = [name for name in file if name.startswith("exchange")]
    if exchanges:
        return f"choose one of {', '.join(exchanges)} by --exchange"
    return f"the file is not of the DXchange layout: it holds {', '.join(file) or 'nothing'}"


def _dataset(file: h5py.File, name: str) -> h5py.Dataset | None:
    found = file.get(name)
    return found if isinstance(found, h5py.Dataset) else None


def _check_frames(dataset: h5py.Dataset) -> None:
    """Refuse what is no stack of detector frames."""
    where = f"{dataset.file.filename}: {dataset.name}"
    shape = dataset.shape or ()
    if len(shape) != 3:
        raise UserError(f"{where} has the shape {shape}; it must be (frames, rows, columns)")
    if 0 in shape:
        raise UserError(f"{where} is empty: its shape is {shape}; choose a file that holds frames")
    if dataset.dtype.kind not in "iuf" or dataset.dtype.itemsize > 8:
        raise UserError(f"{where} has pixels of type {dataset.dtype}; integers or floats of at most 64 bits are read")


def _bounds(file: h5py.File, wanted: slice | None, size: int, what: str) -> range:
    wanted = wanted or slice(None)
    start = 0 if wanted.start is None else wanted.start
    stop = size if wanted.stop is None else wanted.stop
    if wanted.step not in (None, 1) or not 0 <= start < stop <= size:
        raise UserError(
            f"{file.filename}: {what} {start} to {max(start, stop - 1)} were asked for, "
            f"but it has {what} 0 to {size - 1}; choose among these"
        )
    return range(start, stop)


def _find_flats(file: h5py.File, group: str, data: _Stack) -> _Frames:
    name = f"{group}/data_white"
    found = _find_stack(file, name, data)
    if found is not None and not found.is_zero():
        return found
    scalar = f"{ACQUISITION}/flat_fields/flat_field_value"
    value = _scalar(file, scalar)
    if value:
        return _Constant(value, data)
    trouble = "is missing" if found is None else "is all zero"
    raise UserError(
        f"{file.filename}: {name} {trouble}, so nothing can be corrected; add the flats, or their value as {scalar}"
    )


def _find_darks(file: h5py.File, group: str, data: _Stack) -> _Frames:
    name = f"{group}/data_dark"
    found = _find_stack(file, name, data)
    if found is not None and not found.is_zero():
        return found
    scalar = f"{ACQUISITION}/dark_fields/dark_field_value"
    value = _scalar(file, scalar)
    if value is not None:
        return _Constant(value, data)
    if found is not None:
        raise UserError(f"{file.filename}: {name} is all zero; if the detector has no offset, say so by 0 as {scalar}")
    get_logger().warning("no darks in the file: taken as zero", file=file.filename, missing=name)
    return _Constant(0.0, data)


def _find_stack(file: h5py.File, name: str, data: _Stack) -> _Stack | None:
    dataset = _dataset(file, name)
    if dataset is None:
        return None
    _check_frames(dataset)
    if dataset.shape[1:] != data.dataset.shape[1:]:
        raise UserError(
            f"{file.filename}: frames of {name} have the shape {dataset.shape[1:]}, "
            f"those of {data.dataset.name} {data.dataset.shape[1:]}; they must agree"
        )
    return _Stack(dataset, range(dataset.shape[0]), data.region)


def _find_angles(file: h5py.File, group: str, count: int) -> npt.NDArray[np.float64]:
    theta = _dataset(file, f"{group}/theta")
    if theta is not None:
        return _read_theta(theta, count)
    start, step, stated = (
        _scalar(file, f"{ACQUISITION}/rotation/{name}") for name in ("rotation_start", "rotation_step", "num_angles")
    )
    log = get_logger()
    if start is None or step is None:
        log.warning(
            "no angles in the file: equal steps from 0 to 180 degrees are taken",
            file=file.filename,
            missing=f"{group}/theta",
        )
        return equal_angles(count, endpoint=True)
    if stated not in (None, count):
        log.warning("num_angles is not the number of projections", file=file.filename, stated=stated, count=count)
    return math.radians(start) + math.radians(step) * np.arange(count, dtype=np.float64)


def _read_theta(theta: h5py.Dataset, count: int) -> npt.NDArray[np.float64]:
    angles = _numbers(theta)
    if angles.size != count:
        raise UserError(
            f"{theta.file.filename}: {theta.name} has {angles.size} angles for {count} projections; they must agree"
        )
    return angles if _text(theta.attrs.get("units", "")).lower().startswith("rad") else np.radians(angles)


def _text(attribute: Any) -> str:
    """Return a string attribute, however it is stored: as text, as bytes, or as an array of one of them."""
    first = next(iter(np.ravel(attribute)), "")
    return (first.decode(errors="replace") if isinstance(first, bytes) else str(first)).strip()


def _scalar(file: h5py.File, name: str) -> float | None:
    """Return the first number of the dataset `name`, or None where there is no such dataset."""
    dataset = _dataset(file, name)
    if dataset is None:
        return None
    numbers = _numbers(dataset)
    if not numbers.size:
        raise UserError(f"{file.filename}: {name} is empty; it must hold a number")
    return float(numbers[0])


def _numbers(dataset: h5py.Dataset) -> npt.NDArray[np.float64]:
    where = f"{dataset.file.filename}: {dataset.name}"
    if dataset.dtype.kind not in "iuf":
        raise UserError(f"{where} holds values of type {dataset.dtype}; they must be numbers")
    values = np.ravel(dataset[()]).astype(np.float64) if dataset.shape is not None else np.empty(0)
    if not np.isfinite(values).all():
        raise UserError(f"{where} holds values that are not finite numbers; mend them in the file")
    return values
