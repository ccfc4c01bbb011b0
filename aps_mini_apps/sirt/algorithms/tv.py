"""SIRT with total variation kept low: for samples of few materials, from few or noisy projections.

Each update is a pass of ordered-subset SIRT, followed by some steps down the slices' total variation. Together these
steps are a share of how far SIRT went, so that they grow small as it converges.

E. Y. Sidky and X. Pan, "Image reconstruction in circular cone-beam computed tomography by constrained,
total-variation minimization", Physics in Medicine and Biology 53, 4777 (2008).
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from aps_mini_apps.sirt.algorithms._contract import Window, count_subsets, ones
from aps_mini_apps.sirt.projectors import Projector
from aps_mini_apps.sirt.projectors.memory import Held

SOFTNESS = 1e-3
"""Differences below this share of the largest value are noise, not edges."""

TINY = 1e-12
"""Keeps the derivative of an empty volume finite."""


@dataclass(frozen=True)
class Parameters:
    """Settings of `update`."""

    weight: Annotated[float, Field(ge=0.0)] = 0.2
    """Length of each step down the total variation, as a share of SIRT's step."""
    steps: Annotated[int, Field(ge=0)] = 3
    """Steps down the total variation per update."""
    subsets: Annotated[int, Field(ge=1)] = 20
    """Subsets of a window's projections; fewer where a window has few projections."""
    nonnegative: bool = True
    """Set what falls below 0 to 0 before them."""


def update(window: Window, volume: Any, projector: Projector, parameters: Parameters) -> Any:
    """Return `volume`, changed in place by one pass over the subsets and the steps after it."""
    if "pairs" not in window.memory:
        window.memory["pairs"] = _pairs(projector)
    squares = 0.0
    for part in window.subsets(projector, parameters.subsets):
        residual = projector.residual(volume, part.sinogram, part.geometry)
        squares += projector.add_back(volume, residual, part.geometry)
    if parameters.nonnegative:
        volume.clip(0.0, None, out=volume)
    for _ in range(parameters.steps):
        _descend(volume, parameters.weight * math.sqrt(squares), *window.memory["pairs"])
    return volume


def held(parameters: Parameters, projections: int) -> Held:
    """Return what is held beside volume and sinogram.

    All subsets and their residuals; which pixels are neighbours, twice, and four volumes of `gradient`.
    """
    return Held(volumes=6, sinograms=2, geometries=count_subsets(parameters.subsets, projections))


def _descend(volume: Any, length: float, down_pairs: Any, right_pairs: Any) -> None:
    """Take one step of that length down the total variation."""
    slope = gradient(volume, SOFTNESS * float(abs(volume).max()) + TINY, down_pairs, right_pairs)
    steepness = math.sqrt(float((slope * slope).sum()))
    if steepness > 0.0:
        slope *= length / steepness
        volume -= slope


def gradient(volume: Any, softness: float, down_pairs: Any, right_pairs: Any) -> Any:
    """Return the derivative of sum sqrt(|grad x|^2 + softness^2); rows and columns are axes 1 and 2."""
    down = (volume[:, 1:] - volume[:, :-1]) * down_pairs
    right = (volume[:, :, 1:] - volume[:, :, :-1]) * right_pairs
    squares = volume * 0.0 + softness**2
    squares[:, :-1] += down * down
    squares[:, :, :-1] += right * right
    length = squares
    length **= 0.5
    down /= length[:, :-1]
    right /= length[:, :, :-1]
    slope = volume * 0.0
    slope[:, 1:] += down
    slope[:, :-1] -= down
    slope[:, :, 1:] += right
    slope[:, :, :-1] -= right
    return slope


def _pairs(projector: Projector) -> tuple[Any, Any]:
    """Return 1 where a pixel and its neighbour below, or to the right, are both in the image, 0 around it."""
    inside = ones(projector)
    return inside[:, 1:] * inside[:, :-1], inside[:, :, 1:] * inside[:, :, :-1]
