"""SIRT, the simultaneous iterative reconstruction technique, on any projector.

One update: x += relaxation * C A' R (b - A x), where R divides by the row norms and C by the column sums. With
squared row norms it is the update of Trace (the APS mini-apps) and of TomoPy's `sirt`, with plain ones ASTRA's.
"""

import math
from dataclasses import dataclass
from typing import Any

from aps_mini_apps.sirt.projectors import Projector


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a reconstruction has come.

    Attributes
    ----------
    change
        Euclidean norm of the last update's change of the volume.
    misfit
        ||b - A x|| / ||b|| before the last update.
    """

    change: float
    misfit: float


def sirt(
    projector: Projector,
    volume: Any,
    sinogram: Any,
    geometry: Any,
    *,
    iterations: int = 1,
    relaxation: float = 1.0,
) -> Progress:
    """Update `volume` in place, `iterations` times, from the projections in `sinogram`.

    Raises
    ------
    ValueError
        If `iterations` is less than 1.
    """
    if iterations < 1:
        raise ValueError(f"{iterations} iterations would change nothing: use 1 or more")
    for _ in range(iterations):
        residual = projector.residual(volume, sinogram, geometry)
        squares = projector.add_back(volume, residual, geometry, relaxation)
    return Progress(change=math.sqrt(squares), misfit=projector.misfit(residual, sinogram, geometry))
