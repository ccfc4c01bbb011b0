"""The reference projector: plain NumPy, one angle after the other, pixel by pixel. Clear, and slow.

Each pixel lies before a position on the detector, and adds to (or gathers from) the two rays on either side of
it, with the weight of `_footprint`. The sums are made in float64.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aps_mini_apps.sirt.projectors._footprint import NEGLIGIBLE, Model, Norm, footprints, in_circle

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Taps = Iterator[tuple[npt.NDArray[np.intp], Doubles]]


@dataclass(frozen=True, slots=True, eq=False)
class ReferenceGeometry:
    """Footprints of the angles, row norms (angles, columns) and column sums (rows, columns)."""

    angles: npt.NDArray[np.void]
    row_norms: Doubles
    column_sums: Doubles


class NumpyProjector:
    """Volumes are float32 (slices, rows, columns), sinograms (angles, slices, columns)."""

    def __init__(self, slices: int, columns: int, model: Model, norm: Norm, circle: float | None = None) -> None:
        self.slices, self.columns = slices, columns
        self._inside = in_circle(columns, circle)
        self._model: Model = model
        self._norm: Norm = norm

    def new_volume(self) -> Floats:
        """Return a volume of zeros."""
        return np.zeros((self.slices, self.columns, self.columns), np.float32)

    def import_volume(self, data: Floats) -> Floats:
        """Return a copy of `data` (slices, rows, columns), 0 outside the circle."""
        return np.array(data * self._inside, np.float32)

    def export_volume(self, volume: Floats) -> Floats:
        """Return a copy of `volume`."""
        return np.array(volume)

    def measure(self, line_integrals: Floats) -> Floats:
        """Return a copy of one projection (slices, columns)."""
        return np.array(line_integrals, np.float32)

    def stack(self, measurements: Sequence[Floats]) -> Floats:
        """Return measured projections as a sinogram."""
        return np.stack(measurements)

    def export_sinogram(self, sinogram: Floats) -> Floats:
        """Return a copy of a sinogram."""
        return np.array(sinogram)

    def geometry(self, angles: npt.NDArray[np.float64], center: float) -> ReferenceGeometry:
        """Return the footprints of the angles, the row norms and the column sums."""
        records = footprints(angles, center, self.columns, self._model)
        power = 2 if self._norm == "squared" else 1
        row_norms = np.zeros((len(records), self.columns))
        column_sums = np.zeros((self.columns, self.columns))
        for row_norm, angle in zip(row_norms, records, strict=True):
            for rays, weights in self._taps(angle):
                row_norm += np.bincount(rays.ravel(), (weights**power).ravel(), self.columns)
                column_sums += weights
        return ReferenceGeometry(records, row_norms, column_sums)

    def residual(self, volume: Floats, sinogram: Floats, geometry: ReferenceGeometry) -> Floats:
        """Return (b - A x) / row norm."""
        norms = geometry.row_norms[:, None]
        difference = sinogram - self._project(volume, geometry)
        return np.where(norms > NEGLIGIBLE, difference / np.maximum(norms, NEGLIGIBLE), 0.0).astype(np.float32)

    def add_back(self, volume: Floats, residual: Floats, geometry: ReferenceGeometry, relaxation: float = 1.0) -> float:
        """Add the weighted back projection of `residual` to `volume`; return the sum of the squared changes."""
        sums = geometry.column_sums
        crossed = sums > NEGLIGIBLE
        change = relaxation * self._smear(residual, geometry) * crossed / np.maximum(sums, NEGLIGIBLE)
        volume += change
        return float(np.sum(change**2))

    def misfit(self, residual: Floats, sinogram: Floats, geometry: ReferenceGeometry) -> float:
        """Return ||b - A x|| / ||b|| over the rays that cross pixels; 0 if their b is all 0."""
        norms = geometry.row_norms[:, None]
        measured = np.linalg.norm(sinogram * (norms > NEGLIGIBLE))
        return float(np.linalg.norm(residual * norms) / measured) if measured > 0.0 else 0.0

    def forward(self, volume: Floats, geometry: ReferenceGeometry) -> Floats:
        """Return A x."""
        return self._project(volume, geometry).astype(np.float32)

    def back(self, sinogram: Floats, geometry: ReferenceGeometry) -> Floats:
        """Return A' b."""
        return self._smear(sinogram, geometry).astype(np.float32)

    def warm_up(self) -> None:
        """Nothing to compile."""

    def _taps(self, angle: np.void) -> Taps:
        """Yield, for the ray below and the ray above each pixel, its number and its weight (rows, columns)."""
        row, column = np.mgrid[: self.columns, : self.columns]
        position = angle["first"] + column * angle["cos"] - row * angle["sin"]
        below = np.floor(position).astype(np.intp)
        for ray in (below, below + 1):
            distance = np.abs(position - ray)
            weight = np.clip(angle["top"] - angle["fall"] * distance, 0.0, angle["peak"])
            on_detector = (ray >= 0) & (ray < self.columns)
            yield np.clip(ray, 0, self.columns - 1), weight * on_detector * self._inside

    def _project(self, volume: Floats, geometry: ReferenceGeometry) -> Doubles:
        sinogram = np.zeros((len(geometry.angles), self.slices, self.columns))
        for projection, angle in zip(sinogram, geometry.angles, strict=True):
            for rays, weights in self._taps(angle):
                for line, image in zip(projection, volume, strict=True):
                    line += np.bincount(rays.ravel(), (weights * image).ravel(), self.columns)
        return sinogram

    def _smear(self, sinogram: Floats, geometry: ReferenceGeometry) -> Doubles:
        volume = np.zeros((self.slices, self.columns, self.columns))
        for projection, angle in zip(sinogram, geometry.angles, strict=True):
            for rays, weights in self._taps(angle):
                volume += weights * projection[:, rays]
        return volume
