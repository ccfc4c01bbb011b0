"""From detector counts to line integrals: `-log((I - dark) / (flat - dark))`, with bad pixels mended. No I/O.

What follows from the flats and darks alone is worked out once per change of either set, so that a projection
costs a handful of passes over one float32 buffer. Every row is treated by itself: a slab of rows comes out
bit for bit as the same rows of the whole frame.

A pixel is invalid where its value is not finite, where no light is left (transmission <= 0: no logarithm), or
where the flats and darks show that it never responds: dead, saturated, or stuck. Its value is interpolated
linearly along its row between the nearest valid columns. (The APS mini-apps put 0, that is "air", which in
the middle of a dense sample draws a streak through the whole slice.) Line integrals below zero are kept:
noise in air lies on both sides of zero, and cutting one side off would bias the mean.
"""

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.generic]

RESPONDS = 0.01
"""A pixel whose flat rises above its dark by less than this part of its row's median does not respond.

Such a pixel holds counts of noise: a mean of ten flats of 30,000 counts that does not follow the beam differs
from its dark by a few, a ten-thousandth; beam profiles fall off to a few hundredths within a row.
"""


class Correction:
    """The flats and darks of a scan so far, and the correction of projections that follows from them.

    Parameters
    ----------
    normalize
        Subtract the dark and divide by flat - dark. Without, pixels are taken as transmissions already.
    minus_log
        Return line integrals; without, transmissions.
    remove_invalids
        Interpolate invalid pixels; without, they stay as they are (NaN or infinite).
    """

    def __init__(self, *, normalize: bool = True, minus_log: bool = True, remove_invalids: bool = True) -> None:
        self._normalize = normalize
        self._minus_log = minus_log
        self._remove_invalids = remove_invalids
        self._flat = _FrameMean("flat")
        self._dark = _FrameMean("dark")
        self._constants: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None = None
        self._invalid = 0

    @property
    def ready(self) -> bool:
        """Whether projections can be corrected: both sets hold a frame, or none is needed."""
        return not self._normalize or (self._flat.count > 0 and self._dark.count > 0)

    @property
    def invalid(self) -> int:
        """Number of pixels of projections replaced so far."""
        return self._invalid

    def add_flat(self, pixels: Pixels, *, resets: bool = False) -> None:
        """Add a flat (rows, columns), any numeric dtype; with `resets`, forget the earlier ones first.

        Raises
        ------
        ValueError
            If its shape is not that of the flats before it.
        """
        self._flat.add(pixels, resets=resets)
        self._constants = None

    def add_dark(self, pixels: Pixels, *, resets: bool = False) -> None:
        """Add a dark: as `add_flat`."""
        self._dark.add(pixels, resets=resets)
        self._constants = None

    def line_integrals(self, pixels: Pixels, out: npt.NDArray[np.float32] | None = None) -> npt.NDArray[np.float32]:
        """Return the line integrals (rows, columns), float32, of a projection of any real dtype.

        `out` (float32, same shape; may be `pixels` itself) receives them if given. The same frames in the
        same order give the same bits.

        Raises
        ------
        ValueError
            If flats or darks are missing, show no light anywhere, or have another shape than the projection.
        """
        out = np.empty(pixels.shape, np.float32) if out is None else out
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            if self._normalize:
                dark, scale = self._prepared(pixels.shape)
                np.subtract(pixels, dark, out=out)
                np.multiply(out, scale, out=out)
            else:
                out[...] = pixels
            if self._minus_log:
                np.log(out, out=out)
                np.negative(out, out=out)
        if self._remove_invalids:
            if not self._minus_log:
                np.copyto(out, np.nan, where=out <= 0)
            self._invalid += interpolate_invalid(out)
        return out

    def _prepared(self, shape: tuple[int, ...]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return the dark and 1 / (flat - dark), NaN where the pixel does not respond."""
        if self._constants is None:
            self._constants = _constants(self._flat, self._dark)
        if self._constants[0].shape != shape:
            raise ValueError(f"a projection of shape {shape} cannot be corrected by flats and darks of shape "
                             f"{self._constants[0].shape}")  # fmt: skip
        return self._constants


class _FrameMean:
    """Mean of the frames of one kind; their float64 sum is exact for whole counts."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._sum: npt.NDArray[np.float64] = np.empty((0, 0))
        self.count = 0

    def add(self, pixels: Pixels, *, resets: bool) -> None:
        if resets or self.count == 0:
            self._sum, self.count = pixels.astype(np.float64), 1
            return
        if pixels.shape != self._sum.shape:
            raise ValueError(
                f"a {self._kind} of shape {pixels.shape} does not fit the earlier ones of {self._sum.shape}"
            )
        np.add(self._sum, pixels, out=self._sum)
        self.count += 1

    def mean(self) -> npt.NDArray[np.float64]:
        if self.count == 0:
            raise ValueError(f"projections cannot be corrected before a {self._kind} has come")
        return self._sum / self.count


def _constants(flats: _FrameMean, darks: _FrameMean) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    flat, dark = flats.mean(), darks.mean()
    if flat.shape != dark.shape:
        raise ValueError(f"flats of shape {flat.shape} and darks of shape {dark.shape} do not fit each other")
    light = flat - dark
    light[~np.isfinite(light)] = 0.0
    responds = (light > 0) & (light > RESPONDS * np.median(light, axis=1, keepdims=True))
    if not responds.any():
        what = "all zero" if not flat.any() else "nowhere brighter than the darks"
        raise ValueError(f"the flats are {what}: check that they were taken with the beam on and without sample")
    scale = np.full(light.shape, np.nan, np.float32)
    np.divide(1.0, light, out=scale, where=responds, casting="same_kind")
    return np.nan_to_num(dark).astype(np.float32), scale


def interpolate_invalid(image: npt.NDArray[np.float32]) -> int:
    """Replace what is not finite in `image` (rows, columns), in place, and return how many pixels that were.

    Values are interpolated linearly along the row between the nearest finite ones, or are those of the
    nearest one at a row's ends; a row without a finite value becomes 0.
    """
    row, column = np.nonzero(~np.isfinite(image))
    if row.size == 0:
        return 0
    # Neighbouring invalid pixels form a run, whose ends lie beside the nearest valid columns.
    begins = np.r_[True, (np.diff(row) != 0) | (np.diff(column) != 1)]
    run = np.cumsum(begins) - 1
    first = column[begins]
    last = column[np.r_[np.flatnonzero(begins)[1:] - 1, row.size - 1]]
    width = image.shape[1]
    left, right = first[run] - 1, last[run] + 1
    no_left, no_right = left < 0, right >= width
    a = image[row, np.where(no_left, np.minimum(right, width - 1), left)]
    b = image[row, np.where(no_right, np.maximum(left, 0), right)]
    a[no_left & no_right] = b[no_left & no_right] = 0.0
    weight = ((column - left) / (right - left)).astype(np.float32)
    image[row, column] = a + (b - a) * weight
    return int(row.size)
