r"""The one weight function of both projectors: how long a ray runs through a pixel.

In parallel beam that length depends only on the angle and on the distance d between the ray and the pixel's middle.
Let a pixel be a unit square, m = max(|cos|, |sin|), n = min(|cos|, |sin|). Seen along the rays, its shadow on the
detector is m + n wide. A ray that crosses two opposite sides has the full chord 1 / m; one that cuts off a corner has
less, in proportion to its distance from that corner:

    chord
      ^
  1/m +       .___________.
      |      /             \
      |     /               \
    0 +----+--+-----+-----+--+----> d        v = (m - n) / 2, all of the chord up to here
          -w -v     0     v  w               w = (m + n) / 2, nothing from here on

    exact   clip(((m + n) / 2 - |d|) / n, 0, 1) / m     the trapezoid above: its area is 1, the pixel's
    joseph  max(0, 1 - |d| / m) / m                     a triangle: interpolation between the two nearest pixels

Both are `min(peak, max(0, top - fall * d))`, and both vanish at d = 1 (m + n <= sqrt(2), m <= 1): a pixel meets at most
the two rays on either side of its middle. In one step along its main direction a ray meets at most the two pixels on
either side of it, m apart in d. So both projections need two taps, and both can gather.

R. L. Siddon, "Fast calculation of the exact radiological path for a three-dimensional CT array", Medical Physics 12,
252 (1985): the exact lengths, found there ray by ray. P. M. Joseph, "An improved algorithm for reprojecting rays
through pixel images", IEEE Transactions on Medical Imaging 1, 192 (1982). Y. Long, J. A. Fessler, J. M. Balter, "3D
forward and back-projection for X-ray CT using separable footprints", IEEE Transactions on Medical Imaging 29, 1839
(2010): a pixel's footprint as a trapezoid.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt

Model = Literal["exact", "joseph"]
Norm = Literal["squared", "plain"]

NEGLIGIBLE = 1e-6
"""A row norm (or a pixel's sum of lengths) up to this counts as none: rounding, not a ray that meets a pixel."""

_NARROWEST_RAMP = 1e-3
"""Columns. At 0 and 90 degrees the trapezoid is a box; a ray along the border of two pixels gives half to each."""

_FIELDS = ("cos", "sin", "first", "peak", "top", "fall", "spacing", "origin", "pitch", "slope")
_DTYPE = np.dtype([(name, np.float64) for name in _FIELDS] + [("by_rows", np.int64)], align=True)


def in_circle(columns: int, circle: float | None) -> npt.NDArray[np.bool_]:
    """Return which pixels (rows, columns) have their middle in the circle around the image's: all if None.

    `circle` is its diameter as a share of the detector's width.
    """
    if circle is None:
        return np.ones((columns, columns), np.bool_)
    offset = np.arange(columns) - (columns - 1) / 2
    return np.asarray(np.hypot(offset[:, None], offset) <= circle * columns / 2)


def footprints(angles: npt.ArrayLike, center: float, columns: int, model: Model) -> npt.NDArray[np.void]:
    """Return what each angle says about rays and pixels, one record per angle.

    Parameters
    ----------
    angles
        (angles,) radians.
    center
        Rotation axis, columns.
    columns
        Columns of the detector, and rows and columns of the image.
    model
        Weight of a pixel on a ray.

    Returns
    -------
    Records with the fields

    cos, sin, first
        Pixel (row, col) lies before detector position `first + col * cos - row * sin`; ray c is at position c.
    peak, top, fall
        The weight at distance d: `min(peak, max(0, top - fall * d))`.
    by_rows, origin, pitch, slope, spacing
        Ray c walks by rows (else by columns); at step k it crosses column (else row)
        `origin + c * pitch + k * slope`; |slope| <= 1. Neighbours there are `spacing` apart in d.

    Raises
    ------
    ValueError
        If there is no angle, one is not a number, or the centre lies outside the detector.
    """
    angles = np.asarray(angles, np.float64)
    if angles.ndim != 1 or not len(angles) or not np.isfinite(angles).all():
        raise ValueError("angles must be one or more finite numbers (radians)")
    if not 0.0 < center < columns:
        raise ValueError(f"centre {center:g} lies outside the detector of {columns} columns")
    cos, sin = np.cos(angles), np.sin(angles)
    first = center - 0.5 - (columns - 1) / 2 * (cos - sin)

    longer, shorter = np.maximum(abs(cos), abs(sin)), np.minimum(abs(cos), abs(sin))
    ramp = np.maximum(shorter, _NARROWEST_RAMP) if model == "exact" else longer
    fall = 1.0 / (longer * ramp)

    by_rows = abs(cos) >= abs(sin)
    main, across = np.where(by_rows, cos, -sin), np.where(by_rows, sin, -cos)

    records = np.empty(len(angles), _DTYPE)
    records["cos"], records["sin"], records["first"] = cos, sin, first
    records["peak"], records["top"], records["fall"] = 1.0 / longer, (longer + ramp) / 2 * fall, fall
    records["origin"], records["pitch"], records["slope"] = -first / main, 1.0 / main, across / main
    records["by_rows"], records["spacing"] = by_rows, longer
    return records
