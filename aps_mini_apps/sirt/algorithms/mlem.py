"""MLEM, maximum likelihood by expectation maximisation: for counts, and for anything that is not negative.

x *= A'(b / A x) / A'1. What is positive stays positive; measured values below 0 are taken for 0.

L. A. Shepp and Y. Vardi, "Maximum likelihood reconstruction for emission tomography", IEEE Transactions on Medical
Imaging 1, 113 (1982).
"""

from typing import Any

from aps_mini_apps.sirt.algorithms._contract import Window, ones
from aps_mini_apps.sirt.projectors import Projector
from aps_mini_apps.sirt.projectors.memory import Held

NEGLIGIBLE = 1e-6
"""Keeps quotients finite; pixels that no ray crosses keep their value by it."""


def update(window: Window, volume: Any, projector: Projector, _parameters: None) -> Any:
    """Return `volume` after one update."""
    return improve(window, start(window, volume, projector), projector)


def start(window: Window, volume: Any, projector: Projector) -> Any:
    """Return `volume`, or one of ones to begin with: a product never leaves zero."""
    if window.memory.setdefault("started", False):
        return volume
    window.memory["started"] = True
    return ones(projector)


def improve(window: Window, volume: Any, projector: Projector) -> Any:
    """Return `volume`, multiplied in place by how much more was measured along its rays than it explains."""
    scratch, geometry = window.scratch, window.geometry
    if "sensitivity" not in scratch:
        scratch["measured"] = window.sinogram.clip(0.0, None)
        scratch["sensitivity"] = projector.back(window.sinogram * 0.0 + 1.0, geometry) + NEGLIGIBLE
    ratio = scratch["measured"] / projector.forward(volume, geometry).clip(NEGLIGIBLE, None)
    volume *= (projector.back(ratio, geometry) + NEGLIGIBLE) / scratch["sensitivity"]
    return volume


def held(_parameters: None, _projections: int) -> Held:
    """Return what is held beside volume and sinogram.

    Sensitivity, correction, the volume before the update, and at first the empty one; what was measured, what the
    volume explains with the projector's own two, and the ratio.
    """
    return Held(volumes=4, sinograms=5)
