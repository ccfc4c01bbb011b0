"""What an algorithm may ask of a projector."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


class Projector(Protocol):
    """A slab of `slices` slices of `columns` x `columns` pixels, and the rays through them.

    All slices share the angles and the rotation axis. One thread at a time may use a projector.
    """

    slices: int
    columns: int

    def new_volume(self) -> Any:
        """Return a volume of zeros."""

    def import_volume(self, data: npt.NDArray[np.float32]) -> Any:
        """Return `data` (slices, rows, columns) as a volume: a copy."""

    def export_volume(self, volume: Any) -> npt.NDArray[np.float32]:
        """Return a volume as (slices, rows, columns), C order: a copy."""

    def measure(self, line_integrals: npt.NDArray[np.float32]) -> Any:
        """Return one projection (slices, columns), line integrals in pixels, as `stack` takes it."""

    def stack(self, measurements: Sequence[Any]) -> Any:
        """Return measured projections as a sinogram."""

    def export_sinogram(self, sinogram: Any) -> npt.NDArray[np.float32]:
        """Return a sinogram as (angles, slices, columns): a copy."""

    def geometry(self, angles: npt.NDArray[np.float64], center: Any) -> Any:
        """Return all that depends on the angles (radians) and the rotation axis (columns, a number).

        A projector with an axis per slice takes as many of them, too.

        Raises
        ------
        ValueError
            If an angle is not a number or the axis lies outside the detector.
        """

    def residual(self, volume: Any, sinogram: Any, geometry: Any) -> Any:
        """Return (b - A x) / row norm; 0 for rays that cross no pixel."""

    def add_back(self, volume: Any, residual: Any, geometry: Any, relaxation: float = 1.0) -> float:
        """Add `relaxation` * A' residual / column sum to `volume`; return the sum of the squared changes.

        Pixels that no ray crosses stay.
        """

    def misfit(self, residual: Any, sinogram: Any, geometry: Any) -> float:
        """Return ||b - A x|| / ||b|| over the rays that cross pixels; 0 if their b is all 0."""

    def forward(self, volume: Any, geometry: Any) -> Any:
        """Return A x: a sinogram."""

    def back(self, sinogram: Any, geometry: Any) -> Any:
        """Return A' b: a volume."""

    def warm_up(self) -> None:
        """Compile, or load from Numba's cache, everything that this projector will call."""
