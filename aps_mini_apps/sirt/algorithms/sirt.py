"""SIRT, the simultaneous iterative reconstruction technique.

x += relaxation * C A' R (b - A x), where R divides by the row norms and C by the column sums. With squared row norms it
is the update of Trace (the APS mini-apps) and of TomoPy's `sirt`, with plain ones ASTRA's.

P. Gilbert, "Iterative methods for the three-dimensional reconstruction of an object from projections", Journal of
Theoretical Biology 36, 105 (1972).
"""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from aps_mini_apps.sirt.algorithms._contract import Window
from aps_mini_apps.sirt.projectors import Projector
from aps_mini_apps.sirt.projectors.memory import Held


@dataclass(frozen=True)
class Parameters:
    """Settings of `update`."""

    relaxation: Annotated[float, Field(gt=0.0, lt=2.0)] = 1.0
    """Share of each step that is taken."""
    nonnegative: bool = False
    """Set what falls below 0 to 0 after each update."""


def update(window: Window, volume: Any, projector: Projector, parameters: Parameters) -> Any:
    """Return `volume`, changed in place by one update."""
    residual = projector.residual(volume, window.sinogram, window.geometry)
    projector.add_back(volume, residual, window.geometry, parameters.relaxation)
    return volume.clip(0.0, None, out=volume) if parameters.nonnegative else volume


def held(_parameters: Parameters, _projections: int) -> Held:
    """Return what is held beside volume and sinogram: the residual."""
    return Held(sinograms=1)
