"""The projector on an NVIDIA GPU: arrays and sizes around the loops in `_kernels.cu`, by CuPy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cupy
import numpy as np
import numpy.typing as npt

from aps_mini_apps.sirt.projectors._footprint import Model, Norm, footprints, in_circle

Floats = npt.NDArray[np.float32]

_POSITION_BITS = 40
_THREADS = 256
_ROWS = 16
"""Rows of a thread of the back projection: one squared change is kept for all of them."""

ANGLE = np.dtype(
    [(name, np.int64) for name in ("cos", "sin", "first", "origin", "pitch", "slope")]
    + [("by_rows", np.int32)]
    + [(name, np.float32) for name in ("peak", "top", "pixel_fall", "bin_fall")],
    align=True,
)
"""A footprint as `Angle` in `_kernels.cu` has it."""


def _find_gpu() -> None:
    """Raise ImportError where no GPU answers: then this module is of no use."""
    try:
        cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # CUDA's own, which differ by what is missing
        raise ImportError(f"no GPU answers: {error}") from error


_find_gpu()


def memory_available() -> int:
    """Return the bytes of the card's memory that are free."""
    free, _total = cupy.cuda.runtime.memGetInfo()
    return int(free)


@dataclass(frozen=True, slots=True, eq=False)
class CudaGeometry:
    """Footprints of the angles (bytes), the rays' first and last steps, and 1 / row norms; whether to weigh pixels."""

    angles: Any
    spans: Any
    row_weights: Any
    weigh: bool = True


class CudaProjector:
    """Matched projectors on a GPU.

    Parameters
    ----------
    half
        Store volumes and measured sinograms in 16 bits, which halves the memory and its traffic: a volume then has
        three digits. Sums are always made in 32 bits.

    Notes
    -----
    Volumes are [1][row][column][slice], one slab as the compiled projector has several, and sinograms
    [angle][column][slice]: CuPy arrays.
    """

    def __init__(
        self, slices: int, columns: int, model: Model, norm: Norm, circle: float | None = None, *, half: bool = False
    ) -> None:
        self.slices, self.columns = slices, columns
        self._model: Model = model
        self._squared = norm == "squared"
        self._inside = in_circle(columns, circle)
        self._radius = 2.0 * columns if circle is None else circle * columns / 2
        self._stored = np.float16 if half else np.float32
        source = Path(__file__).with_name("_kernels.cu").read_text()
        self._module = cupy.RawModule(code=source, options=("-DHALF",) if half else ())

    def new_volume(self) -> Any:
        """Return a volume of zeros."""
        return cupy.zeros((1, self.columns, self.columns, self.slices), self._stored)

    def import_volume(self, data: Floats) -> Any:
        """Return `data` (slices, rows, columns) as a volume, 0 outside the circle."""
        return cupy.asarray(np.ascontiguousarray((data * self._inside).transpose(1, 2, 0)[None], self._stored))

    def export_volume(self, volume: Any) -> Floats:
        """Return a volume as (slices, rows, columns)."""
        return np.ascontiguousarray(cupy.asnumpy(volume)[0].transpose(2, 0, 1), np.float32)

    def measure(self, line_integrals: Floats) -> Any:
        """Return one projection (slices, columns) as (columns, slices)."""
        if line_integrals.shape != (self.slices, self.columns):
            raise ValueError(f"a projection of {self.slices} x {self.columns} is due, not of {line_integrals.shape}")
        return cupy.asarray(np.ascontiguousarray(line_integrals.T, self._stored))

    def stack(self, measurements: Sequence[Any]) -> Any:
        """Return measured projections as a sinogram."""
        return cupy.stack(measurements)

    def export_sinogram(self, sinogram: Any) -> Floats:
        """Return a sinogram as (angles, slices, columns)."""
        return np.ascontiguousarray(cupy.asnumpy(sinogram).transpose(0, 2, 1), np.float32)

    def geometry(self, angles: npt.NDArray[np.float64], center: float) -> CudaGeometry:
        """Return the footprints of the angles, the rays' spans and the inverse row norms."""
        records = _angle_records(footprints(angles, center, self.columns, self._model))
        geometry = CudaGeometry(
            angles=cupy.asarray(records.view(np.uint8).reshape(len(records), ANGLE.itemsize)),
            spans=cupy.zeros((len(records), self.columns, 2), np.int32),
            row_weights=cupy.zeros((len(records), self.columns), np.float32),
        )
        size, radius, squared = np.int32(self.columns), np.float64(self._radius), np.int32(self._squared)
        arguments = (geometry.angles, size, radius, squared, geometry.spans, geometry.row_weights)
        self._launch("trace_rays", self.columns, len(records), arguments)
        return geometry

    def residual(self, volume: Any, sinogram: Any, geometry: CudaGeometry) -> Any:
        """Return (b - A x) / row norm as (angles, columns, slices), float32."""
        out = cupy.zeros((len(geometry.angles), self.columns, self.slices), np.float32)
        measured = sinogram.astype(self._stored, copy=False)
        sizes = np.int32(self.columns), np.int32(self.slices)
        arguments = (volume, measured, geometry.angles, geometry.spans, geometry.row_weights, *sizes, out)
        self._launch("fill_residual", self.columns * self.slices, len(geometry.angles), arguments)
        return out

    def add_back(self, volume: Any, residual: Any, geometry: CudaGeometry, relaxation: float = 1.0) -> float:
        """Add the weighted back projection of `residual` to `volume`; return the sum of the squared changes."""
        strips = math.ceil(self.columns / _ROWS)
        changes = cupy.zeros((strips, self.columns, self.slices), np.float32)
        sizes = np.int32(len(geometry.angles)), np.int32(self.columns), np.int32(self.slices), np.float64(self._radius)
        how = np.int32(geometry.weigh), np.float32(relaxation), np.int32(_ROWS)
        arguments = (volume, residual, geometry.angles, *sizes, *how, changes)
        self._launch("add_back", self.columns * self.slices, strips, arguments)
        return float(changes.sum(dtype=np.float64))

    def misfit(self, residual: Any, sinogram: Any, geometry: CudaGeometry) -> float:
        """Return ||b - A x|| / ||b|| over the rays that cross pixels; 0 if their b is all 0."""
        weights = geometry.row_weights[..., None]
        crossing = weights > 0.0
        difference = residual / (weights + ~crossing)
        measured = float(((sinogram * crossing).astype(np.float32) ** 2).sum(dtype=np.float64))
        return math.sqrt(float((difference**2).sum(dtype=np.float64)) / measured) if measured > 0.0 else 0.0

    def forward(self, volume: Any, geometry: CudaGeometry) -> Any:
        """Return A x: the residual of nothing measured, unweighted, with the other sign."""
        nothing = cupy.zeros((len(geometry.angles), self.columns, self.slices), self._stored)
        unweighted = replace(geometry, row_weights=geometry.row_weights * np.float32(0.0) - np.float32(1.0))
        return self.residual(volume, nothing, unweighted)

    def back(self, sinogram: Any, geometry: CudaGeometry) -> Any:
        """Return A' b: what an unweighted update adds to nothing."""
        volume = self.new_volume()
        self.add_back(volume, sinogram.astype(np.float32, copy=False), replace(geometry, weigh=False))
        return volume

    def warm_up(self) -> None:
        """Compile the kernels, or load them from CuPy's cache."""
        for name in ("trace_rays", "fill_residual", "add_back"):
            self._module.get_function(name)

    def _launch(self, name: str, width: int, height: int, arguments: tuple[Any, ...]) -> None:
        """Run a kernel on a grid of `width` threads by `height`."""
        self._module.get_function(name)((math.ceil(width / _THREADS), height), (_THREADS, 1), arguments)


def _angle_records(footprint: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """Return footprints as records of `ANGLE`."""
    angles = np.zeros(len(footprint), ANGLE)
    for name in ("cos", "sin", "first", "origin", "pitch", "slope"):
        angles[name] = np.rint(np.ldexp(footprint[name], _POSITION_BITS))
    for name in ("by_rows", "peak", "top"):
        angles[name] = footprint[name]
    angles["pixel_fall"] = footprint["fall"] * footprint["spacing"]
    angles["bin_fall"] = footprint["fall"]
    return angles
