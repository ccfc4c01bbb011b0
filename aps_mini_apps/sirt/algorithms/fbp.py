"""FBP, filtered back projection: the whole scan at once, without iterations.

Each window replaces the volume by x = pi / n A' (filter b), for n projections in equal steps over one or more half
turns. The filter is the ramp, sampled in space so that the mean is right (A. C. Kak and M. Slaney, "Principles of
computerized tomographic imaging", IEEE Press, 1988, chapter 3), times a window that keeps noise down.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from aps_mini_apps.sirt.algorithms._contract import Window
from aps_mini_apps.sirt.projectors import Projector
from aps_mini_apps.sirt.projectors.memory import Held

Filter = Literal["ramp", "shepp-logan", "cosine", "hamming", "hann"]


@dataclass(frozen=True)
class Parameters:
    """Settings of `update`."""

    filter: Filter = "ramp"
    """Frequency window: ramp keeps all of it, hann the least."""


def update(window: Window, volume: Any, projector: Projector, parameters: Parameters) -> Any:
    """Return a new volume; `volume` itself when there is nothing new in the window, or it is done already."""
    if window.iteration or not window.fresh:
        return volume
    _warn_of_a_part_turn(window)
    response = _response(parameters.filter, projector.columns)
    plain = projector.export_sinogram(window.sinogram)
    filtered = projector.stack([projector.measure(_filter(lines, response)) for lines in plain])
    filtered *= np.float32(math.pi / len(window.angles))
    return projector.back(filtered, window.geometry)


def held(_parameters: Parameters, _projections: int) -> Held:
    """Return what is held beside volume and sinogram.

    The new volume, and the one before; the sinogram plain, and filtered, before and after it is stacked.
    """
    return Held(volumes=2, sinograms=4)


def _warn_of_a_part_turn(window: Window) -> None:
    covered = math.degrees(float(np.ptp(window.angles))) * (1.0 + 1.0 / max(len(window.angles) - 1, 1))
    if covered < 179.0 and not window.memory.setdefault("warned", False):
        window.memory["warned"] = True
        warnings.warn(
            f"filtered back projection of {covered:.0f} degrees: it needs the half turn in one window, so give"
            " --window-length and --window-step the number of projections",
            stacklevel=2,
        )


def _response(name: Filter, columns: int) -> npt.NDArray[np.float64]:
    """Return the filter's frequency response, for `numpy.fft.rfft` of twice the columns or more."""
    size = 2 ** math.ceil(math.log2(2 * columns))
    distance = np.minimum(np.arange(size), size - np.arange(size))
    ramp = np.zeros(size)
    ramp[0] = 0.25
    odd = distance % 2 == 1
    ramp[odd] = -1.0 / (math.pi * distance[odd]) ** 2
    frequency = np.fft.rfftfreq(size)  # cycles per column, to 0.5
    windows = {
        "ramp": 1.0,
        "shepp-logan": np.sinc(frequency),
        "cosine": np.cos(math.pi * frequency),
        "hamming": 0.54 + 0.46 * np.cos(2.0 * math.pi * frequency),
        "hann": 0.5 + 0.5 * np.cos(2.0 * math.pi * frequency),
    }
    return np.asarray(np.fft.rfft(ramp).real * windows[name])


def _filter(lines: npt.NDArray[np.float32], response: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Return the rows of one projection (slices, columns) filtered."""
    size, columns = 2 * (len(response) - 1), lines.shape[1]
    return np.fft.irfft(np.fft.rfft(lines, size, axis=1) * response, size, axis=1)[:, :columns].astype(np.float32)
