"""Stripes: detector columns that read too much or too little by the same amount at every angle. No I/O.

A stripe adds the same to a pixel's line integral in every projection; the sample moves on from angle to angle.
One projection alone cannot tell the two apart, so the filter looks at all angles so far. It works on the
steps between neighbouring columns, since the sample's own steps are small and soon forgotten there:

1. Each projection's steps are averaged into a few blocks of angles. An angle counts for a step by how little
   the projection bends there, judged beyond the width of a stripe on both sides: at a sharp edge of the
   sample it counts for next to nothing.
2. A step's estimate is the median of its blocks, which an edge that lingers in one of them does not move.
3. What remains is compared with its neighbourhood along the row (a median, three stripes wide), and kept
   only if it stands out from the noise; steps add up to stripes. First this is done with the median over all
   rows, for stripes that run through the frame, then row by row, for those that do not.

Where the angles so far give no evidence (an edge of the sample that has not moved yet), nothing is subtracted;
where no step stands out, nothing is subtracted either, so most pixels stay as they are. A detail of
the sample on the rotation axis, round and as narrow as a stripe, is one to this filter as to all others.
"""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from scipy.ndimage import median_filter

Map = npt.NDArray[np.float32]

WIDEST = 3
"""Columns that a stripe has at most."""

BOX = 2
"""Columns in each of the two boxes on either side of a stripe; their four means tell how a projection bends."""

WINDOW = 3 * WIDEST
"""Columns of the medians along rows: a stripe, or the two steps of two, are a minority of them."""

LARGEST = 0.12
"""A step beyond this (12 % of the beam) belongs to the sample or to a broken pixel, not to a stripe."""

BEND = 0.03
"""Bend of a projection (in line integrals) that makes an angle count for a quarter, at the least."""

USUAL_BENDS = 45.0
"""The same in multiples of the median bend of the row: noise and smooth bends pass, edges do not. Found by trial
on phantoms: from 30 to 90 the stripes that leave with the first projections are few."""

EVIDENCE = 4.0
"""Sum of the weights of the angles, each 0 to 1, from which on a step is believed."""

STANDS_OUT = 4.5
"""Standard errors by which a step or stripe stands out: of the noise in 2048 x 2048 pixels, about 30 do."""

FEWEST_ROWS = 3
"""Rows, or an eighth of all if that is more, whose evidence is needed for a stripe through the whole frame."""

BLOCKS = 8
"""Blocks of angles that are held; when all are full, they are merged by pairs and fill at half the pace."""

RENEWAL = 1.1
"""The stripes are estimated anew when there are this many times as many angles: it costs more than a frame."""

SIGMAS_PER_MEDIAN = 1.4826
"""Standard deviation of normal noise, per median of its absolute value."""

MEDIAN_LOSS = 1.25
"""Standard error of a median, per standard error of the mean."""


class StripeFilter:
    """Estimates the stripes of a scan while its projections come, and subtracts them.

    All frames have the shape (rows, columns), float32, and hold line integrals. `BLOCKS` + 1 pairs of such
    frames are kept. The same frames in the same order give the same bits.

    Parameters
    ----------
    warm_up
        Angles from which on there is an estimate. The first projections are best held until then. An edge of
        the sample should move by about the width of a stripe meanwhile.
    """

    def __init__(self, *, warm_up: int = 16) -> None:
        self._warm_up = warm_up
        self._angles = 0
        self._renew_at = warm_up
        self._length = 1  # angles in a full block
        self._filled = 0  # blocks that are full
        self._weights = self._sums = np.empty((0, 0, 0), np.float32)
        self._squares = self._stripes = np.empty((0, 0), np.float32)

    @property
    def warm(self) -> bool:
        """Whether enough angles were observed for an estimate."""
        return self._angles >= self._warm_up

    @property
    def stripes(self) -> Map:
        """What is subtracted at present: (rows, columns), zero before the filter is warm."""
        return self._stripes

    def observe(self, line_integrals: Map) -> None:
        """Learn from one more projection.

        Raises
        ------
        ValueError
            If its shape is not that of the projections before it.
        """
        if self._angles == 0:
            self._allocate(*line_integrals.shape)
        if line_integrals.shape != self._stripes.shape:
            raise ValueError(
                f"a projection of shape {line_integrals.shape} came after others of shape {self._stripes.shape}"
            )
        block = self._filled
        _add_steps(line_integrals, self._weights[block], self._sums[block], self._squares)
        self._angles += 1
        if self._angles % self._length == 0:
            self._filled += 1
        if self._filled == BLOCKS:
            self._merge()
        if self._angles >= self._renew_at:
            self._renew_at = int(self._angles * RENEWAL) + 1
            self._stripes = self._estimate()

    def subtract(self, line_integrals: Map) -> None:
        """Subtract the stripes as they are known now, in place; nothing, before the filter is warm."""
        if self.warm:
            np.subtract(line_integrals, self._stripes, out=line_integrals)

    def _allocate(self, rows: int, columns: int) -> None:
        self._weights = np.zeros((BLOCKS, rows, columns - 1), np.float32)
        self._sums = np.zeros((BLOCKS, rows, columns - 1), np.float32)
        self._squares = np.zeros((rows, columns - 1), np.float32)
        self._stripes = np.zeros((rows, columns), np.float32)

    def _merge(self) -> None:
        for blocks in (self._weights, self._sums):
            for k in range(BLOCKS // 2):
                np.add(blocks[2 * k], blocks[2 * k + 1], out=blocks[k])
            blocks[BLOCKS // 2 :] = 0.0
        self._filled = BLOCKS // 2
        self._length *= 2

    def _estimate(self) -> Map:
        steps, errors = _block_medians(self._weights, self._sums, self._squares)
        common = _common_stripes(steps, errors)
        own = _stripes_of_steps(steps - np.diff(common, axis=1), errors)
        return np.add(own, common, out=own)


def _common_stripes(steps: Map, errors: Map) -> Map:
    """Return the stripes (1, columns) that run through all rows: those of the median step of the rows."""
    believed = np.isfinite(errors)
    rows = believed.sum(axis=0, keepdims=True)
    excess = np.where(believed, _above_neighbourhood(steps), np.nan)
    excess[:, rows[0] == 0] = 0.0
    median = np.nanmedian(excess, axis=0, keepdims=True)
    spread = SIGMAS_PER_MEDIAN * np.nanmedian(np.abs(excess - median), axis=0, keepdims=True)
    enough = rows >= max(FEWEST_ROWS, steps.shape[0] / 8)
    error = np.where(enough, MEDIAN_LOSS * spread / np.sqrt(np.maximum(rows, 1)), np.inf)
    return _stripes_of_steps(median.astype(np.float32), error.astype(np.float32))


def _stripes_of_steps(steps: Map, errors: Map) -> Map:
    """Return the stripes (rows, columns) whose steps between columns (rows, columns - 1) stand out."""
    excess = _above_neighbourhood(steps)
    excess[~(np.abs(excess) > STANDS_OUT * errors)] = 0.0
    levels = np.cumsum(np.pad(excess, ((0, 0), (1, 0))), axis=1, dtype=np.float32)
    stripes = _above_neighbourhood(levels)
    beside = np.pad(errors, ((0, 0), (1, 1)), constant_values=np.inf)
    error = np.minimum(beside[:, 1:], beside[:, :-1])
    size = np.abs(stripes)
    stripes[~((size > STANDS_OUT * error) & (size < LARGEST))] = 0.0
    return stripes


def _above_neighbourhood(values: Map) -> Map:
    """Return `values` (rows, columns) less the median of their neighbourhood along the row."""
    # One long line, its rows kept apart by mirrored ends: scipy's one-dimensional filter is fast.
    half = WINDOW // 2
    line = np.pad(values, ((0, 0), (half, half)), mode="reflect" if values.size else "constant")
    medians: Map = median_filter(line.ravel(), size=WINDOW).reshape(line.shape)
    return values - medians[:, half:-half]


def _compiled(function: Any) -> Any:
    return numba.njit(cache=True, nogil=True)(function)


@_compiled
def _add_steps(image: Any, weights: Any, sums: Any, squares: Any) -> None:
    """Add the steps of `image` between columns i and i + 1, weighted, to element i of each row."""
    rows, columns = image.shape
    reach = WIDEST + 2 * BOX
    line = np.empty(columns + 2 * reach, np.float32)
    bends = np.empty(columns - 1, np.float32)
    for row in range(rows):
        line[:reach], line[reach:-reach], line[-reach:] = image[row, 0], image[row], image[row, -1]
        for i in range(columns - 1):
            bend = np.float32(0.0)
            for k in range(BOX):
                left, right = i + reach - WIDEST - k, i + reach + 1 + WIDEST + k
                bend += line[left - BOX] - line[left] - line[right] + line[right + BOX]
            bends[i] = bend / np.float32(BOX)
        usual = np.median(np.abs(bends[:: 1 + columns // 256]))
        straight = np.float32(max(BEND, USUAL_BENDS * usual))
        for i in range(columns - 1):
            step = image[row, i + 1] - image[row, i]
            bend = bends[i] / straight
            weight = np.float32(1.0) / (np.float32(1.0) + bend * bend)
            weight *= weight
            if abs(step) < LARGEST and weight > 0:  # neither holds for NaN
                weights[row, i] += weight
                sums[row, i] += weight * step
                squares[row, i] += weight * step * step


@_compiled
def _block_medians(weights: Any, sums: Any, squares: Any) -> Any:
    """Return the weighted median over the blocks of the mean step, and its standard error (or infinity)."""
    blocks, rows, count = weights.shape
    steps = np.zeros((rows, count), np.float32)
    errors = np.full((rows, count), np.inf, np.float32)
    means = np.empty(blocks, np.float32)
    parts = np.empty(blocks, np.float32)
    for row in range(rows):
        for i in range(count):
            held, total, summed = 0, 0.0, 0.0
            for block in range(blocks):
                weight = weights[block, row, i]
                if weight > 0:
                    mean = sums[block, row, i] / weight
                    total, summed = total + weight, summed + sums[block, row, i]
                    place = held
                    while place > 0 and means[place - 1] > mean:
                        means[place], parts[place] = means[place - 1], parts[place - 1]
                        place -= 1
                    means[place], parts[place] = mean, weight
                    held += 1
            if held == 0:
                continue
            middle, below = 0, parts[0]
            while below < total / 2 and middle < held - 1:
                middle += 1
                below += parts[middle]
            steps[row, i] = means[middle]
            if total >= EVIDENCE:
                variance = max(squares[row, i] / total - (summed / total) ** 2, 0.0)
                errors[row, i] = MEDIAN_LOSS * np.sqrt(variance / total)
    return steps, errors
