"""SIRT that knows two things of the sample: nothing is less than air, and all of it lies within a circle.

ministream run scan.h5 --algorithm examples/my_circle.py --parameter radius=0.9
"""

from dataclasses import dataclass

import numpy as np


@dataclass
class Parameters:
    """What `--parameter` may set."""

    radius: float = 0.95
    """Of the circle, as a share of half the detector's width."""


def update(window, volume, projector, parameters):
    """Make one step of SIRT, then forget what cannot be there."""
    residual = projector.residual(volume, window.sinogram, window.geometry)
    projector.add_back(volume, residual, window.geometry)
    if "circle" not in window.memory:  # made once; it is forgotten when this file changes
        window.memory["circle"] = make_circle(projector, parameters.radius)
    volume *= window.memory["circle"]
    return volume.clip(0.0, None, out=volume)


def make_circle(projector, radius):
    """Return 1 within the circle and 0 around it, in the layout of the volume."""
    columns = projector.columns
    y, x = np.mgrid[:columns, :columns] - (columns - 1) / 2
    circle = np.hypot(y, x) < radius * columns / 2
    return projector.import_volume(np.broadcast_to(circle, (projector.slices, columns, columns)).astype(np.float32))
