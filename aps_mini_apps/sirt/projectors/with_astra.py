"""The ASTRA toolbox's CPU projectors `line` (exact lengths) and `linear` (Joseph) behind our interface.

W. van Aarle et al., "Fast and flexible X-ray tomography using the ASTRA toolbox", Optics Express 24, 25129 (2016).
ASTRA's axes are ours with the second one pointing up: positions on the detector and angles are the same numbers.
"""

import functools
import weakref
from dataclasses import dataclass
from typing import Any

import astra
import numpy as np
import numpy.typing as npt

from aps_mini_apps.sirt.projectors._footprint import Model, Norm, footprints
from aps_mini_apps.sirt.projectors.reference import Doubles, Floats, NumpyProjector, ReferenceGeometry

_PROJECTORS: dict[Model, str] = {"exact": "line", "joseph": "linear"}


@dataclass(frozen=True, slots=True, eq=False)
class AstraGeometry(ReferenceGeometry):
    """The norms, and ASTRA's matrix for one slice."""

    matrix: Any


class AstraProjector(NumpyProjector):
    """Volumes and sinograms as the reference has them; ASTRA projects slice by slice, on one thread."""

    def __init__(self, slices: int, columns: int, model: Model, norm: Norm, circle: float | None = None) -> None:
        super().__init__(slices, columns, model, norm, circle)
        self._squares = functools.lru_cache(maxsize=4096)(self._sum_squares)

    def geometry(self, angles: npt.NDArray[np.float64], center: float) -> AstraGeometry:
        """Return ASTRA's matrix for the angles, its row norms and its column sums."""
        records = footprints(angles, center, self.columns, self._model)
        matrix = self._matrix(np.asarray(angles, np.float64), center)
        inside = self._inside.astype(np.float32)
        squared = self._norm == "squared"
        norms = [self._squares(float(angle), center) for angle in angles] if squared else matrix.FP(inside)
        return AstraGeometry(
            angles=records,
            row_norms=np.array(norms, np.float64),
            column_sums=self._inside * matrix.BP(np.ones((len(records), self.columns), np.float32)).astype(np.float64),
            matrix=matrix,
        )

    def _project(self, volume: Floats, geometry: Any) -> Doubles:
        return np.stack([geometry.matrix.FP(image) for image in volume], axis=1).astype(np.float64)

    def _smear(self, sinogram: Floats, geometry: Any) -> Doubles:
        lines = np.asarray(sinogram, np.float32).swapaxes(0, 1)
        return np.stack([self._inside * geometry.matrix.BP(line) for line in lines]).astype(np.float64)

    def _matrix(self, angles: npt.NDArray[np.float64], center: float) -> Any:
        """Return an operator with `FP` and `BP`; what ASTRA holds for it goes when it goes."""
        cos, sin = np.cos(angles), np.sin(angles)
        shift = self.columns / 2 - center  # of the detector's middle, along the detector
        vectors = np.column_stack([sin, -cos, shift * cos, shift * sin, cos, sin])  # ray, middle, one column
        beam = astra.create_proj_geom("parallel_vec", self.columns, vectors)
        image = astra.create_vol_geom(self.columns, self.columns)
        number = astra.create_projector(_PROJECTORS[self._model], beam, image)
        matrix = astra.OpTomo(number)
        weakref.finalize(matrix, astra.projector.delete, number)
        return matrix

    def _sum_squares(self, angle: float, center: float) -> Doubles:
        """Return the sums of a projection's squared lengths, which ASTRA tells only by its sparse matrix."""
        operator = self._matrix(np.array([angle]), center)
        number = astra.projector.matrix(operator.proj_id)
        try:
            lengths = astra.matrix.get(number)
        finally:
            astra.matrix.delete(number)
        return np.asarray(lengths.multiply(lengths) @ self._inside.ravel().astype(np.float64))
