"""SIRT with a median filter now and then: specks go, edges stay.

    ministream run scan.h5 --algorithm examples/my_median.py --parameter every=20

A filter of another library wants a plain array (slices, rows, columns): export, filter, import.
"""

from dataclasses import dataclass

from scipy.ndimage import median_filter

from aps_mini_apps.sirt.algorithms import Held


@dataclass
class Parameters:
    """What `--parameter` may set."""

    every: int = 10
    """Windows from one filtering to the next: it takes longer than a window."""
    share: float = 0.5
    """How much of the filtered volume is mixed in."""


def update(window, volume, projector, parameters):
    """Make one step of SIRT; in every so many windows mix the filtered volume in."""
    residual = projector.residual(volume, window.sinogram, window.geometry)
    projector.add_back(volume, residual, window.geometry)
    if window.number % parameters.every:
        return volume
    slices = projector.export_volume(volume)
    smooth = median_filter(slices, size=(1, 3, 3))
    return projector.import_volume((1 - parameters.share) * slices + parameters.share * smooth)


def held(_parameters, _projections):
    """Tell what is held at once beside volume and sinogram, so that a slab which would not fit is refused."""
    return Held(volumes=4, sinograms=1)
