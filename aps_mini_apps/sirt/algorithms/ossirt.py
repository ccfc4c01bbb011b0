"""Ordered-subset SIRT with Nesterov's momentum: as good as SIRT after a small part of its projections.

One update goes through the subsets of the projections, with a SIRT step on each, and then further in the direction in
which the volume has moved since the last update, the further the longer that direction has held. When a step turns
against the momentum, the momentum is dropped (adaptive restart).

H. M. Hudson and R. S. Larkin, IEEE Transactions on Medical Imaging 13, 601 (1994), for the subsets; D. Kim, S. Ramani
and J. A. Fessler, IEEE Transactions on Medical Imaging 34, 167 (2015), for subsets with momentum; B. O'Donoghue and
E. Candès, Foundations of Computational Mathematics 15, 715 (2015), for the restart.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from aps_mini_apps.sirt.algorithms._contract import Window, count_subsets
from aps_mini_apps.sirt.projectors import Projector
from aps_mini_apps.sirt.projectors.memory import Held


@dataclass(frozen=True)
class Parameters:
    """Settings of `update`."""

    subsets: Annotated[int, Field(ge=1)] = 20
    """Subsets of a window's projections; fewer where a window has few projections."""
    relaxation: Annotated[float, Field(gt=0.0, lt=2.0)] = 1.0
    """Share of each step that is taken."""
    momentum: bool = True
    """Go further where the volume is moving to."""
    nonnegative: bool = True
    """Set what falls below 0 to 0 after each pass over the subsets."""


def update(window: Window, volume: Any, projector: Projector, parameters: Parameters) -> Any:
    """Return `volume`, changed in place by one pass over the subsets."""
    memory = window.scratch  # not beyond the window: the next one asks for another image, away from where this moved
    start = memory.get("reached")
    if parameters.momentum and start is not None:
        volume += memory["ahead"]
    for part in window.subsets(projector, parameters.subsets):
        residual = projector.residual(volume, part.sinogram, part.geometry)
        projector.add_back(volume, residual, part.geometry, parameters.relaxation)
    if parameters.nonnegative:
        volume.clip(0.0, None, out=volume)
    if parameters.momentum:
        _build_momentum(memory, volume)
    return volume


def _build_momentum(memory: dict[str, Any], volume: Any) -> None:
    """Note how far beyond `volume` the next update is to begin."""
    before, time = memory.get("reached"), memory.get("time", 1.0)
    if before is None:
        moved, memory["reached"] = volume * 0.0, volume.copy()
    else:
        moved, before[...] = volume - before, volume
    against = before is not None and float(((moved - memory["ahead"]) * moved).sum()) < 0.0
    memory["time"] = 1.0 if against else (1.0 + math.sqrt(1.0 + 4.0 * time**2)) / 2.0
    moved *= 0.0 if against else (time - 1.0) / memory["time"]
    memory["ahead"] = moved


def held(parameters: Parameters, projections: int) -> Held:
    """Return what is held beside volume and sinogram.

    All subsets and their residuals; with momentum where the last update ended, how far it went, how far beyond this one
    is to begin, and the difference of both.
    """
    subsets = count_subsets(parameters.subsets, projections)
    return Held(volumes=4 if parameters.momentum else 0, sinograms=2, geometries=subsets)
