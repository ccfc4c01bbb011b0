"""CGLS, conjugate gradients on the normal equations: the least ||b - A x||, in few updates.

Directions are kept over the updates of a window, and begin anew with the next one, whose equations are others.

M. R. Hestenes and E. Stiefel, "Methods of conjugate gradients for solving linear systems", Journal of Research of the
National Bureau of Standards 49, 409 (1952); in the form of Å. Björck, "Numerical methods for least squares problems"
(SIAM, 1996), algorithm 7.4.1.
"""

from typing import Any

from aps_mini_apps.sirt.algorithms._contract import Window
from aps_mini_apps.sirt.projectors import Projector
from aps_mini_apps.sirt.projectors.memory import Held


def update(window: Window, volume: Any, projector: Projector, _parameters: None) -> Any:
    """Return `volume`, changed in place by one step along a conjugate direction."""
    state, geometry = window.scratch, window.geometry
    if "direction" not in state:
        state["residual"] = window.sinogram - projector.forward(volume, geometry)
        state["direction"] = projector.back(state["residual"], geometry)
        state["gamma"] = _dot(state["direction"])
    ahead = projector.forward(state["direction"], geometry)
    length = _dot(ahead)
    if length == 0.0:  # nothing is left to explain
        return volume
    step = state["gamma"] / length
    volume += step * state["direction"]
    state["residual"] -= step * ahead
    gradient = projector.back(state["residual"], geometry)
    gamma = _dot(gradient)
    state["direction"] = gradient + (gamma / state["gamma"]) * state["direction"]
    state["gamma"] = gamma
    return volume


def _dot(values: Any) -> float:
    return float((values * values).sum())


def held(_parameters: None, _projections: int) -> Held:
    """Return what is held beside volume and sinogram.

    Direction, gradient, its square, and the volume before the update; what is left to explain, the direction's
    projection, and two of the projector's own.
    """
    return Held(volumes=4, sinograms=4)
