"""SIRT by hand: the smallest algorithm of one's own.

    ministream run scan.h5 --algorithm examples/my_sirt.py --parameter strength=0.8

Change something while the scan runs, and save: the next window is reconstructed with it.
"""

from dataclasses import dataclass


@dataclass
class Parameters:
    """What `--parameter` may set."""

    strength: float = 1.0


def update(window, volume, projector, parameters):
    """Compare what was measured with what the volume explains, and spread the difference back over the rays."""
    residual = projector.residual(volume, window.sinogram, window.geometry)
    projector.add_back(volume, residual, window.geometry, parameters.strength)
    return volume
