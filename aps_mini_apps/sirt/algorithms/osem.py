"""OSEM, ordered-subset expectation maximisation: MLEM on one subset of the projections after the other.

H. M. Hudson and R. S. Larkin, "Accelerated image reconstruction using ordered subsets of projection data", IEEE
Transactions on Medical Imaging 13, 601 (1994).
"""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from aps_mini_apps.sirt.algorithms import mlem
from aps_mini_apps.sirt.algorithms._contract import Window, count_subsets
from aps_mini_apps.sirt.projectors import Projector
from aps_mini_apps.sirt.projectors.memory import Held


@dataclass(frozen=True)
class Parameters:
    """Settings of `update`."""

    subsets: Annotated[int, Field(ge=1)] = 20
    """Subsets of a window's projections; fewer where a window has few projections."""


def update(window: Window, volume: Any, projector: Projector, parameters: Parameters) -> Any:
    """Return `volume` after one pass over the subsets."""
    volume = mlem.start(window, volume, projector)
    for part in window.subsets(projector, parameters.subsets):
        volume = mlem.improve(part, volume, projector)
    return volume


def held(parameters: Parameters, projections: int) -> Held:
    """Return what is held beside volume and sinogram: as for MLEM, with all subsets and a sensitivity for each."""
    return Held(volumes=count_subsets(parameters.subsets, projections) + 3, sinograms=5)
