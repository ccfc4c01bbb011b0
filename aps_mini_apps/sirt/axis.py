"""The rotation axis, from the projections themselves.

Two projections 180 degrees apart are mirror images of each other about the axis: their correlation gives a first
guess. It is refined by what the axis is for: slices reconstructed with a wrong one have arcs, dark beside bright, so
the axis is where the reconstruction's absolute values sum to the least (the measure Q_IA of Donath, Beckmann and
Schreyer, "Automated determination of the center of rotation in tomography data", J. Opt. Soc. Am. A 23, 1048, 2006).
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.float32]

PAIR_TOLERANCE = math.radians(4.0)
"""How far from 180 degrees apart two projections may be: scans often end one step, of up to 4 degrees, short of it."""

OVERLAP = 0.5
"""Least part of the columns on which mirror images are compared: the axis lies in the detector's middle half."""

SAMPLES = 160
"""Points per side of the grid on which a trial slice is computed: its mean needs no full resolution."""

TRIAL_ANGLES = 360
"""Projections used for a trial slice at most."""


def find_pair(angles: npt.NDArray[np.float64]) -> tuple[int, int] | None:
    """Return the indices of the two angles (radians) nearest to 180 degrees apart, the earlier one first.

    None if no two come within `PAIR_TOLERANCE` of it.
    """
    if len(angles) < 2 or np.ptp(angles) < math.pi - PAIR_TOLERANCE:
        return None
    order = np.argsort(angles, kind="stable")
    ascending = angles[order]
    after = np.searchsorted(ascending, ascending + math.pi)
    best: tuple[float, int, int] | None = None
    for neighbour in (after - 1, after):
        inside = np.clip(neighbour, 0, len(angles) - 1)
        error = np.abs(ascending[inside] - ascending - math.pi)
        index = int(np.argmin(error))
        found = (float(error[index]), int(order[index]), int(order[inside[index]]))
        best = found if best is None or found[0] < best[0] else best
    if best is None or best[0] > PAIR_TOLERANCE:
        return None
    return min(best[1], best[2]), max(best[1], best[2])


def from_pair(first: Image, opposite: Image) -> float:
    """Return the axis (columns) about which `opposite` mirrors `first`, both (rows, columns) line integrals.

    The mirrored `opposite` is `first` shifted by `2 axis - columns`; the shift with the highest correlation over the
    common columns is taken, and refined by a parabola. Good to about half a column with exact opposites.
    """
    columns = first.shape[1]
    mirrored = opposite[:, ::-1]
    limit = int(columns * (1.0 - OVERLAP))
    shifts = np.arange(-limit, limit + 1)
    scores = np.array([_correlation(first, mirrored, int(shift)) for shift in shifts])
    return float(columns + _peak(shifts, scores)) / 2.0


def refine(sinogram: Image, angles: npt.NDArray[np.float64], guess: float, *, reach: float = 1.5) -> float:
    """Return the axis (columns) near `guess` with which the reconstruction is best.

    Parameters
    ----------
    sinogram
        (angles, columns) line integrals of one slice.
    angles
        Radians, covering about 180 degrees or more.
    guess
        Where to look, columns.
    reach
        How far from it, columns. Where the best trial is the last one, the measure has no minimum here (a sample
        much wider than the detector, say), and the guess stands.
    """
    step = max(1, len(angles) // TRIAL_ANGLES)
    filtered = _ramp_filtered(sinogram[::step])
    used = angles[::step]
    # the same circle for every trial, or the trial with the largest one would win by its air
    radius = max(2.0, min(guess, sinogram.shape[1] - guess) - 2.0 * reach)
    center = guess
    for width in (reach, reach / 4.0):
        trials = np.linspace(center - width, center + width, 9)
        scores = np.array([-_mean_absolute(filtered, used, trial, radius) for trial in trials])
        if np.argmax(scores) in (0, len(trials) - 1):
            break
        center = _peak(trials, scores)
    return float(center)


def _correlation(first: Image, mirrored: Image, shift: int) -> float:
    """Return the normalised correlation of first[c + shift] and mirrored[c] over the common columns."""
    columns = first.shape[1]
    a = first[:, max(0, shift) : columns + min(0, shift)].ravel()
    b = mirrored[:, max(0, -shift) : columns + min(0, -shift)].ravel()
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale > 0.0 else 0.0


def _peak(places: Sequence[float] | npt.NDArray[np.generic], scores: npt.NDArray[np.float64]) -> float:
    """Return where the parabola through the highest score and its neighbours peaks."""
    at = np.asarray(places, np.float64)
    top = int(np.argmax(scores))
    if not 0 < top < len(scores) - 1:
        return float(at[top])
    left, middle, right = scores[top - 1 : top + 2]
    bend = left - 2.0 * middle + right
    offset = 0.5 * (left - right) / bend if bend < 0.0 else 0.0
    return float(at[top] + offset * (at[1] - at[0]))


def _ramp_filtered(sinogram: Image) -> npt.NDArray[np.float64]:
    """Return the rows filtered by a ramp with a Hann window, which keeps noise from deciding."""
    columns = sinogram.shape[1]
    size = 2 ** math.ceil(math.log2(2 * columns))
    frequency = np.fft.rfftfreq(size)
    response = frequency * (0.5 + 0.5 * np.cos(2.0 * np.pi * frequency))
    # the edges continue, or a sample wider than the detector would make a step there
    left = (size - columns) // 2
    padded = np.pad(sinogram, ((0, 0), (left, size - columns - left)), mode="edge")
    filtered = np.fft.irfft(np.fft.rfft(padded, axis=1) * response, size, axis=1)
    return np.asarray(filtered[:, left : left + columns])


def _mean_absolute(
    filtered: npt.NDArray[np.float64], angles: npt.NDArray[np.float64], center: float, radius: float
) -> float:
    """Return the mean absolute value, within `radius` columns, of the slice that is reconstructed about `center`."""
    axis = np.linspace(-radius, radius, SAMPLES)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    inside = x**2 + y**2 < radius**2
    x, y = x[inside], y[inside]
    slice_ = np.zeros(x.size)
    columns_at = np.arange(filtered.shape[1])
    for row, angle in zip(filtered, angles, strict=True):
        slice_ += np.interp(x * math.cos(angle) - y * math.sin(angle) + center - 0.5, columns_at, row)
    return float(np.abs(slice_).mean())
