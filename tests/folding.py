"""Algorithms outside a stream: one window, made by hand."""

from typing import Any

import numpy as np

from aps_mini_apps.sirt.algorithms import Progress, Window, load_algorithm
from aps_mini_apps.sirt.projectors import Projector


def make_window(projector: Projector, measured: np.ndarray, angles: np.ndarray, center: float, **more: Any) -> Window:
    """Return a window over all of `measured` (projections, slices, columns)."""
    measurements = [projector.measure(projection) for projection in measured.astype(np.float32)]
    return Window(
        angles=angles,
        center=center,
        measurements=measurements,
        sinogram=projector.stack(measurements),
        geometry=projector.geometry(angles, center),
        **{"fresh": len(angles)} | more,
    )


def sirt(
    projector: Projector, volume: Any, sinogram: Any, geometry: Any, *, iterations: int = 1, **parameters: Any
) -> Progress:
    """Update `volume` in place by SIRT."""
    nothing = {"angles": np.zeros(0), "center": 0.0, "measurements": []}
    window = Window(**nothing, sinogram=sinogram, geometry=geometry, iterations=iterations)
    return load_algorithm("sirt", parameters).fold(window, volume, projector)[1]
