"""Rays and pixels as the compiled loops see them, whatever the width: positions, weights, spans and sums of rays.

Positions are integers: units of 2**-40 column for a ray or a pixel (exact to 1e-8 column on any detector), and
within the tables of 16 units of 2**-26, which a shift splits into a whole pixel and a fraction.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
# (Numba types these functions, from the arrays that they are called with.)

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from aps_mini_apps.sirt.projectors._footprint import NEGLIGIBLE
from aps_mini_apps.sirt.projectors._vectors import (
    TABLE_LANES,
    counting,
    item,
    load,
    maximum,
    minimum,
    store,
    to_float,
    width,
    zeros,
)

BORDER = 1
"""Zero pixels around the image: where the second of a ray's two taps falls at the edge."""
BINS_BEFORE = 2
BINS_AFTER = 2
"""Zero bins around the detector: positions beyond it are moved there."""

POSITION_BITS = 40
FRACTION_BITS = 26  # leaves +-32 columns: a table of 16 spans less
_SHIFT = POSITION_BITS - FRACTION_BITS
_FRACTION_MASK = (1 << FRACTION_BITS) - 1
_EDGE = 1e-6  # a ray that runs this close to the far side of the border has no weight, only rounding

ANGLES_PER_JOB = 16
"""Angles of a forward job: they share its band of the volume."""


class Angle(NamedTuple):
    """A footprint as the loops want it: positions as integers, weights as `top - fall * fraction`.

    The weight of the neighbour above is `pixel_top + pixel_fall * fraction` where rays meet pixels, and
    `bin_top + bin_fall * fraction` where pixels meet bins, whose neighbours lie farther apart.
    """

    cos: np.int64
    sin: np.int64
    first: np.int64
    origin: np.int64
    pitch: np.int64
    slope: np.int64
    by_rows: np.int64
    peak: np.float32
    top: np.float32
    pixel_top: np.float32
    pixel_fall: np.float32
    bin_top: np.float32
    bin_fall: np.float32


ANGLE = np.dtype(list(Angle.__annotations__.items()), align=True)
"""An angle as an element of an array."""

LOOP = {"nogil": True, "cache": True, "error_model": "numpy"}
PARALLEL = {**LOOP, "parallel": True}
# Small functions become part of their caller. They own no arrays: counting references would cost half the speed.
SMALL = {"forceinline": True, "error_model": "numpy", "_nrt": False}


@njit(**SMALL)
def at_hand(angle):
    """Return an element of an array as values that stay in registers: the array might change with every store."""
    return Angle(
        angle.cos, angle.sin, angle.first, angle.origin, angle.pitch, angle.slope, angle.by_rows,
        angle.peak, angle.top, angle.pixel_top, angle.pixel_fall, angle.bin_top, angle.bin_fall,
    )  # fmt: skip


@njit(**SMALL)
def columns_of(inside):
    """Return the columns of the image, of whose rows `inside` tells."""
    return inside.shape[1] - TABLE_LANES


@njit(**SMALL)
def unravel(job, size):
    """Return the two coordinates of a job on a grid `size` wide (Numba counts jobs without a sign)."""
    job = np.intp(job)
    return job // size, job % size


# --------------------------------------------------------------------------------------- positions and weights


@njit(**SMALL)
def table_positions(position, step):
    """Return the whole part of `position`, and the rest plus 0, 1, ... 15 steps as table positions."""
    whole = np.int32(position >> POSITION_BITS)
    rest = np.int32((position >> _SHIFT) & _FRACTION_MASK)
    return whole, counting() * np.int32(step >> _SHIFT) + rest


@njit(**SMALL)
def _tap_weights(positions, peak, top_below, top_above, fall):
    """Return the weights of the neighbours below and above each table position."""
    fraction = to_float(positions & np.int32(_FRACTION_MASK))
    none = np.float32(0.0)
    below = minimum(peak, maximum(none, top_below - fall * fraction))
    above = minimum(peak, maximum(none, top_above + fall * fraction))
    return below, above


@njit(**SMALL)
def pixel_weights(angle, positions):
    """Return the weights of the pixels below and above the `positions` of rays."""
    return _tap_weights(positions, angle.peak, angle.top, angle.pixel_top, angle.pixel_fall)


@njit(**SMALL)
def bin_weights(angle, positions):
    """Return the weights of the bins below and above the `positions` of pixels."""
    return _tap_weights(positions, angle.peak, angle.top, angle.bin_top, angle.bin_fall)


@njit(**SMALL)
def on_detector(angle, row, column):
    """Return the position on the detector that a pixel lies at."""
    return angle.first + column * angle.cos - row * angle.sin


# ------------------------------------------------------------------- what depends on the angles and not the data


@njit(**SMALL)
def _position(columns):
    """Return a position in units of 2**-40 column."""
    return np.int64(np.rint(columns * np.float64(1 << POSITION_BITS)))


@njit(**LOOP)
def fill_angles(footprints, angles):
    """Fill records of `ANGLE` with what `footprints` say: NumPy would take longer over a small window."""
    unit = 1.0 / (1 << FRACTION_BITS)
    for index in range(len(angles)):
        footprint, angle = footprints[index], angles[index]
        angle.cos, angle.sin = _position(footprint.cos), _position(footprint.sin)
        angle.first, angle.origin = _position(footprint.first), _position(footprint.origin)
        angle.pitch, angle.slope = _position(footprint.pitch), _position(footprint.slope)
        angle.by_rows, angle.peak, angle.top = footprint.by_rows, footprint.peak, footprint.top
        fall = footprint.fall * footprint.spacing
        angle.pixel_top, angle.pixel_fall = footprint.top - fall, fall * unit
        angle.bin_top, angle.bin_fall = footprint.top - footprint.fall, footprint.fall * unit


@njit(**SMALL)
def _across_image(start, slope, size):
    """Return the first and last step (fractions) between the borders left and right of the image."""
    low, high = -1.0 + _EDGE, size - _EDGE
    if slope == 0.0:
        return (0.0, size - 1.0) if low < start < high else (0.0, -1.0)
    enter, leave = (low - start) / slope, (high - start) / slope
    return (enter, leave) if slope > 0.0 else (leave, enter)


@njit(**SMALL)
def _across_circle(start, slope, size, radius):
    """Return the first and last step (fractions) at which a ray has pixels of a circle next to it."""
    middle = (size - 1) / 2
    offset, square = start + middle * slope - middle, 1.0 + slope * slope
    chord = (radius + BORDER) ** 2 * square - offset * offset
    if chord <= 0.0:
        return 0.0, -1.0
    half = math.sqrt(chord)
    return middle - (offset * slope + half) / square, middle - (offset * slope - half) / square


@njit(**SMALL)
def span(angle, ray, size, radius):
    """Return the steps (first, one past the last) at which a ray runs over the image, its circle or its border."""
    start = (angle.origin + ray * angle.pitch) / (1 << POSITION_BITS)
    slope = angle.slope / (1 << POSITION_BITS)
    enter, leave = _across_image(start, slope, size)
    enter_circle, leave_circle = _across_circle(start, slope, size, radius)
    first = math.ceil(min(max(enter, enter_circle, 0.0), float(size)))
    last = math.floor(max(min(leave, leave_circle, size - 1.0), -1.0))
    return first, max(first, last + 1)


# ------------------------------------------------------------------------------------------------ sums of rays


@njit(**SMALL)
def clear(sums, rays):
    vector = width(sums)
    for ray in range(rays[0], rays[1]):
        store(sums, (ray + BINS_BEFORE) * vector, zeros(sums))


@njit(**SMALL)
def weigh(measured, weights, rays, sums):
    """Turn the sums of `rays` into weighted differences from what was measured."""
    vector = width(sums)
    for ray in range(rays[0], rays[1]):
        place = (ray + BINS_BEFORE) * vector
        store(sums, place, item(weights, ray) * (load(measured, ray * vector) - load(sums, place)))


@njit(**SMALL)
def row_weight(norm):
    """Return 1 / the norm of a row of the matrix, 0 where there is none."""
    return np.float32(1.0) / norm if norm > np.float32(NEGLIGIBLE) else np.float32(0.0)
