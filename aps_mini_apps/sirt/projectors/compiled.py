"""The compiled projector: arrays, sizes and checks around the loops in `_kernels` and, for single slices, `_single`."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numba
import numpy as np
import numpy.typing as npt

from aps_mini_apps.compiling import one_at_a_time
from aps_mini_apps.sirt.projectors import _kernels, _rays, _single
from aps_mini_apps.sirt.projectors._footprint import Model, Norm, footprints, in_circle
from aps_mini_apps.sirt.projectors._layout import choose_lanes
from aps_mini_apps.sirt.projectors._vectors import CACHE_LINE, TABLE_LANES, WINDOW, picks_at_once, vector_dtype

Floats = npt.NDArray[np.float32]

_LARGEST_OFFSET = 2**31 - 1
"""Offsets within a slab are 32-bit: the tables of the kernels hold them."""
_FEWEST_RAYS = 32
"""Rays of one forward job, at least: fewer than that spend their time on the tables."""

_FEW_ANGLES = 8
_STRIP = 8
"""Windows of few angles are bound by the memory, which likes whole rows best, this many to a job; those of many by the
cache, in which their bins stay while a tile is filled."""


@dataclass(slots=True, eq=False)
class CompiledGeometry:
    """What depends on the angles: see `_kernels.fill_residual` and `_kernels.add_back`.

    Spans and row weights mean nothing until a projection has `traced` the rays. Column weights come at little cost
    where an update works the lengths out anyway, and windows are updated once as a rule: those of few angles are kept
    from the second update on, since a table as large as a slice costs a single update more than it saves.
    """

    angles: npt.NDArray[np.void]
    spans: npt.NDArray[np.int32]
    row_weights: Floats
    column_weights: Floats | None = None
    traced: bool = False
    weighed: bool = False
    updates: int = 0


class NumbaProjector:
    """Matched projectors on all cores, many slices at a time.

    A volume is float32 (slabs, rows, columns, lanes) with a border of zeros, a sinogram (slabs, angles, columns,
    lanes); slice k is lane `k % lanes` of slab `k // lanes`, and lanes without a slice stay 0.

    Raises
    ------
    ValueError
        If one slab has more than 2**31 numbers.
    """

    def __init__(self, slices: int, columns: int, model: Model, norm: Norm, circle: float | None = None) -> None:
        self.slices, self.columns = slices, columns
        self._model: Model = model
        self._norm: Norm = norm
        self._lanes = 1 if slices == 2 and picks_at_once() else choose_lanes(slices)  # two alone are faster than a pair
        self._slabs = math.ceil(slices / self._lanes)
        self._loops = _single if self._lanes == 1 else _kernels
        self._side = _odd(max(WINDOW, columns + 2 * _rays.BORDER))
        self._bins = _odd(max(WINDOW, columns + _rays.BINS_BEFORE + _rays.BINS_AFTER))
        if self._side**2 * self._lanes > _LARGEST_OFFSET:
            raise ValueError(
                f"{self._lanes} slices of {columns} x {columns} pixels are too large for one slab: "
                "use fewer slices or columns"
            )
        self._dtype = vector_dtype(self._lanes)
        self._table_columns = math.ceil(columns / TABLE_LANES) * TABLE_LANES
        self._radius = math.inf if circle is None else circle * columns / 2
        self._member = in_circle(columns, circle)
        self._inside = _first_and_last(self._member)
        self._unkept = np.empty((0, self._table_columns), np.float32)

    def new_volume(self) -> Floats:
        """Return a volume of zeros."""
        return _zeros((self._slabs, self._side, self._side, self._lanes))

    def import_volume(self, data: npt.NDArray[np.float32]) -> Floats:
        """Return `data` (slices, rows, columns) as a volume, 0 outside the circle."""
        volume = self.new_volume()
        inside = self._image(volume)
        for k in range(self.slices):
            np.multiply(data[k], self._member, out=inside[k // self._lanes, ..., k % self._lanes])
        return volume

    def export_volume(self, volume: Floats) -> Floats:
        """Return a volume as (slices, rows, columns)."""
        inside = self._image(volume)
        data = np.empty((self.slices, self.columns, self.columns), np.float32)
        for slab in range(self._slabs):
            part = data[slab * self._lanes : (slab + 1) * self._lanes]
            for row in range(self.columns):  # row by row, so that reads and writes both stay in the cache
                part[:, row] = inside[slab, row, :, : len(part)].T
        return data

    def measure(self, line_integrals: npt.NDArray[np.float32]) -> Floats:
        """Return one projection (slices, columns) as (slabs, columns, lanes)."""
        if line_integrals.shape != (self.slices, self.columns):
            raise ValueError(f"a projection of {self.slices} x {self.columns} is due, not of {line_integrals.shape}")
        padded = np.zeros((self._slabs * self._lanes, self.columns), np.float32)
        padded[: self.slices] = line_integrals
        return np.ascontiguousarray(padded.reshape(self._slabs, self._lanes, self.columns).transpose(0, 2, 1))

    def stack(self, measurements: Sequence[Floats]) -> Floats:
        """Return measured projections as a sinogram."""
        slabs, *rest = measurements[0].shape
        sinogram = np.empty((slabs, len(measurements), *rest), np.float32)
        for index, measurement in enumerate(measurements):  # np.stack takes longer for small windows
            sinogram[:, index] = measurement
        return sinogram

    def export_sinogram(self, sinogram: Floats) -> Floats:
        """Return a sinogram as (angles, slices, columns)."""
        slabs, angles, columns, lanes = sinogram.shape
        plain = sinogram.transpose(1, 0, 3, 2).reshape(angles, slabs * lanes, columns)
        return np.array(plain[:, : self.slices])

    def geometry(self, angles: npt.NDArray[np.float64], center: float) -> CompiledGeometry:
        """Return the footprints of the angles, and room for what the first projections find out of the rays."""
        _compile(self._lanes)  # nothing else runs before there is a geometry
        return self._geometry(angles, center)

    def _geometry(self, angles: npt.NDArray[np.float64], center: float) -> CompiledGeometry:
        records = _compile_angles(footprints(angles, center, self.columns, self._model))
        return CompiledGeometry(
            angles=records,
            spans=np.empty((len(records), self.columns, 2), np.int32),
            row_weights=np.empty((len(records), self.columns), np.float32),
        )

    def residual(self, volume: Floats, sinogram: Floats, geometry: CompiledGeometry) -> Floats:
        """Return (b - A x) / row norm as (slabs, angles, bins, lanes), with empty bins on both sides."""
        return self._project(volume, sinogram, geometry, weighted=True)

    def _project(self, volume: Floats, sinogram: Floats, geometry: CompiledGeometry, *, weighted: bool) -> Floats:
        out = _zeros((self._slabs, len(geometry.angles), self._bins, self._lanes))
        self._loops.fill_residual(
            self._vectors(volume),
            self._vectors(sinogram),
            geometry.angles,
            self._inside,
            self._radius,
            self._norm == "squared",
            geometry.spans,
            geometry.row_weights,
            not geometry.traced,
            weighted,
            self._rays_per_job(),
            self._vectors(out),
        )
        geometry.traced = True
        return out

    def add_back(self, volume: Floats, residual: Floats, geometry: CompiledGeometry, relaxation: float = 1.0) -> float:
        """Add the weighted back projection of `residual` to `volume`; return the sum of the squared changes."""
        rows, columns = self._tile(len(geometry.angles))
        tiles = math.ceil(self.columns / rows) * math.ceil(self.columns / columns)
        changes = np.empty((self._slabs, tiles, self._lanes), np.float32)
        weights = self._weights(geometry)
        self._loops.add_back(
            self._vectors(volume),
            self._vectors(residual),
            geometry.angles,
            self._inside,
            self._unkept if weights is None else weights,
            not geometry.weighed,
            weights is not None,
            np.float32(relaxation),
            rows,
            columns,
            self._vectors(changes),
        )
        geometry.updates, geometry.weighed = geometry.updates + 1, weights is not None
        return float(changes.sum(dtype=np.float64))

    def _weights(self, geometry: CompiledGeometry) -> Floats | None:
        """Return the table of column weights, filled or to be filled, if it is kept."""
        if geometry.column_weights is None and (geometry.updates or len(geometry.angles) > _FEW_ANGLES):
            geometry.column_weights = self._new_weights()
        return geometry.column_weights

    def _new_weights(self) -> Floats:
        return np.zeros((self.columns, self._table_columns), np.float32)

    def misfit(self, residual: Floats, sinogram: Floats, geometry: CompiledGeometry) -> float:
        """Return ||b - A x|| / ||b|| over the rays that cross pixels; 0 if their b is all 0."""
        sums = np.empty((*sinogram.shape[:2], 2, self._lanes), np.float32)
        _kernels.sum_squares(
            self._vectors(residual), self._vectors(sinogram), geometry.row_weights, self._vectors(sums)
        )
        difference, measured = sums.sum(axis=(0, 1, 3), dtype=np.float64)
        return math.sqrt(difference / measured) if measured > 0.0 else 0.0

    def forward(self, volume: Floats, geometry: CompiledGeometry) -> Floats:
        """Return A x."""
        unread = np.empty((self._slabs, len(geometry.angles), self.columns, self._lanes), np.float32)
        return self._detector(self._project(volume, unread, geometry, weighted=False)).copy()

    def back(self, sinogram: Floats, geometry: CompiledGeometry) -> Floats:
        """Return A' b: what an unweighted update adds to nothing."""
        members = self._new_weights()
        members[:, : self.columns] = self._member  # pixels are done in pairs: one of them may lie outside the circle
        unweighted = replace(geometry, column_weights=members, weighed=True)
        padded = _zeros((self._slabs, len(geometry.angles), self._bins, self._lanes))
        self._detector(padded)[...] = sinogram
        volume = self.new_volume()
        self.add_back(volume, padded, unweighted)
        return volume

    def warm_up(self) -> None:
        """Compile, or load from Numba's cache, everything that is called."""
        _compile(self._lanes)

    def run_once(self) -> None:
        """Call every kernel that an algorithm calls."""
        volume = self.new_volume()
        sinogram = self.stack([self.measure(np.zeros((self.slices, self.columns), np.float32))])
        geometry = self._geometry(np.zeros(1), self.columns / 2)
        residual = self.residual(volume, sinogram, geometry)
        self.add_back(volume, residual, geometry)
        self.misfit(residual, sinogram, geometry)

    def _rays_per_job(self) -> int:
        """Return the rays of a forward job: a share of all for each thread, in whole vectors."""
        threads: int = numba.get_num_threads()
        return max(_FEWEST_RAYS, math.ceil(self.columns / threads / TABLE_LANES) * TABLE_LANES)

    def _tile(self, angles: int) -> tuple[int, int]:
        """Return the rows and columns of the tiles in which so many angles are added back."""
        return (_STRIP, self._table_columns) if angles <= _FEW_ANGLES else (_kernels.TILE_ROWS, _kernels.TILE_COLUMNS)

    def _image(self, volume: Floats) -> Floats:
        inner = slice(_rays.BORDER, _rays.BORDER + self.columns)
        return volume[:, inner, inner]

    def _detector(self, bins: Floats) -> Floats:
        return bins[:, :, _rays.BINS_BEFORE : _rays.BINS_BEFORE + self.columns]

    def _vectors(self, array: Floats) -> npt.NDArray[np.void]:
        """View an array whose last axis is the lanes as an array of vectors."""
        return array.view(self._dtype)[..., 0]


@functools.cache
def _compile(lanes: int) -> None:
    """Have the kernels for `lanes` compiled or loaded: compiled code depends on nothing else."""
    with one_at_a_time():
        NumbaProjector(lanes, 4, "exact", "squared").run_once()


def _compile_angles(footprint: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """Return footprints as records of `_rays.ANGLE`."""
    angles = np.empty(len(footprint), _rays.ANGLE)
    _rays.fill_angles(footprint, angles)
    return angles


def _first_and_last(member: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """Return the first and the last member of each row: (2, rows and a table's more); rows without one are empty.

    A circle lies the same way along the columns.
    """
    columns = len(member)
    rows = member.any(axis=1)
    ends = np.full((2, columns + TABLE_LANES), [[columns], [-1]], np.int32)
    ends[0, :columns][rows] = member.argmax(axis=1)[rows]
    ends[1, :columns][rows] = columns - 1 - member[:, ::-1].argmax(axis=1)[rows]
    return ends


def _odd(size: int) -> int:
    """Return `size` or the next odd number: strides of a power of two share few lines of the cache."""
    return size | 1


def _zeros(shape: tuple[int, ...]) -> Floats:
    """Return zeros that begin on a cache line, so that no vector straddles two.

    (NumPy itself asks for huge pages where an array is large, which matters as much.)
    """
    count = math.prod(shape)
    spare = CACHE_LINE // 4
    block = np.zeros(count + spare, np.float32)
    start = -block.ctypes.data % CACHE_LINE // 4
    return block[start : start + count].reshape(shape)
