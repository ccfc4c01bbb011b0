"""From detector counts to line integrals: `-log((I - dark) / (flat - dark))`, with bad pixels mended. No I/O.

What follows from the flats and darks alone is worked out once per change of either set, so that a projection
costs one pass of compiled code (`_correction_kernels`), on as many threads as `numba.get_num_threads()`. Every row is
treated by itself: a slab of rows comes out bit for bit as the same rows of the whole frame, in either layout.

A pixel is invalid where its value is not finite, where no light is left (transmission <= 0: no logarithm), or
where the flats and darks show that it never responds: dead, saturated, or stuck. Its value is interpolated
linearly along its row between the nearest valid columns. (The APS mini-apps put 0, that is "air", which in
the middle of a dense sample draws a streak through the whole slice.) Line integrals below zero are kept:
noise in air lies on both sides of zero, and cutting one side off would bias the mean.
"""

import functools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from aps_mini_apps.compiling import one_at_a_time

Pixels = npt.NDArray[np.generic]

PIXEL_TYPES = ("uint16", "uint8", "float32")
"""Types of pixels that are read as they come."""

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
        Interpolate invalid pixels; without, they are NaN, or with `minus_log` off what they are.
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
        """Return the line integrals, float32, of a projection (rows, columns) of any real dtype.

        Parameters
        ----------
        pixels
            Counts, or transmissions without `normalize`. Types that are neither uint8, uint16 nor float32 are rounded
            to float32 first.
        out
            Receives them, if given: (rows, columns), which may be `pixels` itself, or the layout of a window,
            (slabs, columns, lanes), C order: row k is lane `k % lanes` of slab `k // lanes`, lanes without one are 0.

        Returns
        -------
        out
            The same frames in the same order give the same bits.

        Raises
        ------
        ValueError
            If flats or darks are missing, show no light anywhere, or have another shape than the projection, or `out`
            is too small.
        """
        out = np.empty(pixels.shape, np.float32) if out is None else out
        _check_fits(pixels.shape, out.shape)
        invalid = np.zeros(len(pixels), np.int64)
        fill = _kernel(_pixel_type(pixels.dtype), out.ndim)
        fill(_readable(pixels), *self._prepared(pixels.shape), self._minus_log, self._remove_invalids, out, invalid)
        if self._remove_invalids:
            self._invalid += int(invalid.sum())
        return out

    def _prepared(self, shape: tuple[int, ...]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return the dark and 1 / (flat - dark), NaN where the pixel does not respond."""
        if not self._normalize:
            if self._constants is None or self._constants[0].shape != shape:
                self._constants = np.zeros(shape, np.float32), np.ones(shape, np.float32)
        elif self._constants is None:
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


def _check_fits(frame: tuple[int, ...], out: tuple[int, ...]) -> None:
    rows, columns = frame
    fits = out == frame if len(out) == 2 else len(out) == 3 and out[1] == columns and out[0] * out[2] >= rows
    if not fits:
        raise ValueError(f"a projection of {rows} rows and {columns} columns does not fit into an array of {out}")


def _pixel_type(dtype: np.dtype[np.generic]) -> str:
    """Return the type that the compiled code reads pixels of `dtype` as."""
    return dtype.name if dtype.name in PIXEL_TYPES and dtype.isnative else "float32"


def _readable(pixels: Pixels) -> Pixels:
    """Return `pixels` as the one kind of array that code is compiled for: in C order, aligned, and read-only."""
    view = np.require(pixels, _pixel_type(pixels.dtype), ("C", "A")).view()
    view.flags.writeable = False
    return view


def warm_up(dimensions: int = 2) -> None:
    """Compile, or load from Numba's cache, all that corrections into an array of 2 or 3 dimensions call."""
    for pixel_type in PIXEL_TYPES:
        _kernel(pixel_type, dimensions)


@functools.cache
def _kernel(pixel_type: str, dimensions: int) -> Callable[..., None]:
    """Return the compiled loop for pixels of a type and an output of 2 or 3 dimensions, after one call of it."""
    # Imported here: Numba takes a second to load.
    from aps_mini_apps.dist import _correction_kernels as kernels

    fill: Callable[..., None] = kernels.correct_rows if dimensions == 2 else kernels.correct_slabs
    one = np.ones((1, 1), np.float32)
    with one_at_a_time():
        fill(_readable(np.ones((1, 1), pixel_type)), one, one, True, True, np.ones((1,) * dimensions, np.float32),
             np.zeros(1, np.int64))  # fmt: skip
    return fill
