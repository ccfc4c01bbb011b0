"""A rotation axis of its own for every slice: exact, and slower.

Where the axis leans against the detector's columns, or several samples turn on one stage, the centre differs by row.
Then no two slices have one system matrix, and the vectors of the compiled projector have nothing to share: this one
takes each slice through a projector of one slice (about a tenth of the speed of 16 at a time). Nothing is resampled.
Slices with equal centres share their geometry.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from aps_mini_apps.sirt.projectors._protocol import Projector

Floats = npt.NDArray[np.float32]


class PerSliceProjector:
    """A projector of `slices` slices whose `geometry` takes one centre per slice.

    Its arrays are those of `single`, one slice after the other.

    Parameters
    ----------
    single
        A projector of one slice.
    slices
        How many slices there are.
    axis
        Axis of the slices in the sinograms of `single` (in its volumes and projections it is the first).
    """

    def __init__(self, single: Projector, slices: int, axis: int) -> None:
        self.slices, self.columns = slices, single.columns
        self._single = single
        self._axis = axis

    def new_volume(self) -> Floats:
        """Return a volume of zeros."""
        return np.concatenate([self._single.new_volume() for _ in range(self.slices)])

    def import_volume(self, data: Floats) -> Floats:
        """Return `data` (slices, rows, columns) as a volume."""
        return np.concatenate([self._single.import_volume(image[None]) for image in data])

    def export_volume(self, volume: Floats) -> Floats:
        """Return a volume as (slices, rows, columns)."""
        return np.concatenate([self._single.export_volume(image) for image in self._images(volume)])

    def measure(self, line_integrals: Floats) -> Floats:
        """Return one projection (slices, columns)."""
        if line_integrals.shape != (self.slices, self.columns):
            raise ValueError(f"a projection of {self.slices} x {self.columns} is due, not of {line_integrals.shape}")
        return np.concatenate([self._single.measure(line[None]) for line in line_integrals])

    def stack(self, measurements: Sequence[Floats]) -> Any:
        """Return measured projections as a sinogram."""
        return self._single.stack(measurements)

    def export_sinogram(self, sinogram: Floats) -> Floats:
        """Return a sinogram as (angles, slices, columns)."""
        return np.concatenate([self._single.export_sinogram(rays) for rays in self._sinograms(sinogram)], axis=1)

    def geometry(self, angles: npt.NDArray[np.float64], center: float | npt.ArrayLike) -> list[Any]:
        """Return one geometry per slice, for one centre or (slices,) centres.

        Raises
        ------
        ValueError
            If there are more or fewer centres than slices, or one is refused.
        """
        centers = np.asarray(center, np.float64)
        if centers.shape not in ((), (self.slices,)):
            raise ValueError(f"{centers.size} centres do not fit {self.slices} slices: give one, or one per slice")
        each = np.broadcast_to(centers, self.slices).tolist()
        known = {center: self._single.geometry(angles, center) for center in dict.fromkeys(each)}
        return [known[center] for center in each]

    def residual(self, volume: Floats, sinogram: Floats, geometry: list[Any]) -> Floats:
        """Return (b - A x) / row norm."""
        slices = zip(self._images(volume), self._sinograms(sinogram), geometry, strict=True)
        return self._join([self._single.residual(*each) for each in slices])

    def add_back(self, volume: Floats, residual: Floats, geometry: list[Any], relaxation: float = 1.0) -> float:
        """Add the weighted back projection of `residual` to `volume`; return the sum of the squared changes."""
        slices = zip(self._images(volume), self._sinograms(residual), geometry, strict=True)
        return sum(self._single.add_back(*each, relaxation) for each in slices)

    def misfit(self, residual: Floats, sinogram: Floats, geometry: list[Any]) -> float:
        """Return ||b - A x|| / ||b||, of the slices the root mean square weighted by each one's ||b||."""
        slices = list(zip(self._sinograms(residual), self._sinograms(sinogram), geometry, strict=True))
        misfits = np.array([self._single.misfit(*each) for each in slices])
        measured = np.array([np.sum(rays.astype(np.float64) ** 2) for _, rays, _ in slices])
        return float(np.sqrt(np.average(misfits**2, weights=measured))) if measured.any() else 0.0

    def forward(self, volume: Floats, geometry: list[Any]) -> Floats:
        """Return A x."""
        return self._join([self._single.forward(*each) for each in zip(self._images(volume), geometry, strict=True)])

    def back(self, sinogram: Floats, geometry: list[Any]) -> Floats:
        """Return A' b."""
        slices = zip(self._sinograms(sinogram), geometry, strict=True)
        return np.concatenate([self._single.back(*each) for each in slices])

    def warm_up(self) -> None:
        """Compile what will be called."""
        self._single.warm_up()

    def _images(self, volume: Floats) -> list[Floats]:
        return np.split(volume, self.slices)

    def _sinograms(self, sinogram: Floats) -> list[Floats]:
        return np.split(sinogram, self.slices, self._axis)

    def _join(self, sinograms: list[Floats]) -> Floats:
        return np.concatenate(sinograms, axis=self._axis)
