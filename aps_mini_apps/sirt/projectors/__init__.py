"""Projectors: the forward projection A of a slab of slices and its transpose A', for parallel beam.

Two back ends behind one Protocol: `numpy` (the reference: clear and slow) and `numba` (compiled and fast).
They are the same matrix up to rounding. Volumes, sinograms and geometries stay in the back end's own layout;
only `import_volume`, `measure`, `export_volume` and `export_sinogram` know plain arrays.
"""

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from aps_mini_apps.sirt.projectors._footprint import Model, Norm

__all__ = ["Backend", "Model", "Norm", "Projector", "make_projector"]

Backend = Literal["numba", "numpy"]


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

    def geometry(self, angles: npt.NDArray[np.float64], center: float) -> Any:
        """Return all that depends on the angles (radians) and the rotation axis (columns).

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


def make_projector(
    backend: Backend, slices: int, columns: int, *, model: Model = "exact", norm: Norm = "squared"
) -> Projector:
    """Return a projector.

    Parameters
    ----------
    backend
        "numba" (fast; as many threads as `numba.get_num_threads()`) or "numpy" (the reference).
    slices, columns
        Slices of the slab; columns of the detector, and rows and columns of each slice.
    model
        Weight of a pixel on a ray: "exact" intersection length (Siddon), or "joseph" (interpolation).
    norm
        Row norm: sum of the "squared" lengths (Trace, TomoPy) or of the "plain" lengths (ASTRA).

    Raises
    ------
    ValueError
        If there is no such back end, model or norm, or the slab is empty or too large.
    """
    for name, value, known in (
        ("back end", backend, ("numba", "numpy")),
        ("model", model, ("exact", "joseph")),
        ("norm", norm, ("squared", "plain")),
    ):
        if value not in known:
            raise ValueError(f"{name} {value!r} does not exist: use {known[0]!r} or {known[1]!r}")
    if slices < 1 or columns < 1:
        raise ValueError(f"a slab has at least one slice and one column, not {slices} and {columns}")
    # Imported here: Numba takes a second to load, and the reference does without.
    if backend == "numpy":
        from aps_mini_apps.sirt.projectors.reference import NumpyProjector

        return NumpyProjector(slices, columns, model, norm)
    from aps_mini_apps.sirt.projectors.compiled import NumbaProjector

    return NumbaProjector(slices, columns, model, norm)
