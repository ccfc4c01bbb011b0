"""TomoPy's own iterations behind our interface.

TomoPy (D. Gürsoy et al., "TomoPy: a framework for the analysis of synchrotron tomographic data", Journal of Synchrotron
Radiation 21, 1188 (2014)) tells no back projection: it offers whole algorithms that go on from a given image. So this
back end has `update`, which takes the place of an algorithm's own, and of the projector pair only the forward half, by
which the misfit is told.
"""

from dataclasses import dataclass
from typing import Any, NoReturn

import numba
import numpy as np
import numpy.typing as npt
import tomopy
from tomopy.sim.project import project

from aps_mini_apps.sirt.projectors._footprint import Model, Norm, footprints
from aps_mini_apps.sirt.projectors.reference import Doubles, Floats, NumpyProjector, ReferenceGeometry

ALGORITHMS = ("sirt", "mlem")
"""What TomoPy computes as we do, and goes on with from an image."""

_ABOVE_NOTHING = np.float32(1e-6)
"""Multiplication never leaves 0; TomoPy starts its images from this number."""


@dataclass(frozen=True, slots=True, eq=False)
class TomopyGeometry(ReferenceGeometry):
    """The norms, and where TomoPy sees the rotation axis."""

    theta: npt.NDArray[np.float32]
    center: float


class TomopyProjector(NumpyProjector):
    """Volumes and sinograms as the reference has them; slices are shared out among the threads."""

    def __init__(self, slices: int, columns: int, model: Model, norm: Norm, circle: float | None = None) -> None:
        if (model, norm, circle) != ("exact", "squared", None):
            raise ValueError(
                "back end tomopy knows exact lengths, squared norms and no circle: leave these options as they are, or"
                " use --backend numba"
            )
        super().__init__(slices, columns, model, norm, circle)

    def geometry(self, angles: npt.NDArray[np.float64], center: float) -> TomopyGeometry:
        """Return the angles, the axis, and the rays' lengths in place of row norms, which TomoPy does not tell."""
        records = footprints(angles, center, self.columns, self._model)
        theta = np.asarray(angles, np.float32)
        lengths = _project(np.ones((1, self.columns, self.columns), np.float32), theta, center)
        nothing = np.zeros((self.columns, self.columns))
        return TomopyGeometry(records, lengths[:, 0], nothing, theta, center)

    def update(self, algorithm: str, window: Any, volume: Floats, _projector: Any, parameters: Any) -> Floats:
        """Return `volume` after one iteration of TomoPy's algorithm of that name.

        Raises
        ------
        ValueError
            If TomoPy has none, or none with such parameters.
        """
        if algorithm not in ALGORITHMS or parameters != type(parameters)():
            self._refuse(f"algorithm {algorithm} with {parameters}" if algorithm in ALGORITHMS else algorithm)
        start = np.maximum(volume, _ABOVE_NOTHING) if algorithm == "mlem" else volume
        updated = tomopy.recon(
            window.sinogram,
            window.geometry.theta,
            center=window.center,
            sinogram_order=False,
            algorithm=algorithm,
            init_recon=np.array(start),  # which TomoPy changes
            num_iter=1,
            ncore=numba.get_num_threads(),
        )
        return np.array(updated, np.float32)

    def _project(self, volume: Floats, geometry: Any) -> Doubles:
        return _project(volume, geometry.theta, geometry.center)

    def _smear(self, sinogram: Floats, geometry: Any) -> NoReturn:  # noqa: ARG002
        self._refuse("this algorithm")

    def _refuse(self, what: str) -> NoReturn:
        raise ValueError(
            f"back end tomopy cannot run {what}: TomoPy has no back projector for others, only algorithms of its own"
            f" (here {' and '.join(ALGORITHMS)}, with default parameters); use --backend numba"
        )


def _project(volume: Floats, theta: npt.NDArray[np.float32], center: float) -> Doubles:
    sinogram = project(volume, theta, center=center, pad=False, ncore=numba.get_num_threads())
    return np.asarray(sinogram, np.float64)
