"""The loops of the correction: one pass from detector counts to line integrals, a row at a time.

Every pixel is read and written once; only rows with invalid pixels are gone through again. Every operation is rounded
as written (`fused` is one rounding, and nothing else may be reordered), so a row gives the same bits wherever it lies
in a frame, in either layout, on any number of threads, and on any processor.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
# (Numba types these functions, from the arrays that they are called with.)

import math

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic

_LOOP = {"nogil": True, "cache": True, "error_model": "numpy"}
_PARALLEL = {**_LOOP, "parallel": True}
_SMALL = {"forceinline": True, "error_model": "numpy"}

SMALLEST = np.float32(2.0**-126)
LARGEST = np.finfo(np.float32).max
NO_NUMBER = np.float32(np.nan)

MANTISSA_BITS = 23
ROOT_HALF = int(np.float32(math.sqrt(0.5)).view(np.int32))
"""The bits of sqrt(1/2): mantissas are taken between it and its double, so that numbers near 1 have exponent 0."""
ONE, MINUS_LN_2 = np.float32(1.0), np.float32(-math.log(2.0))
SERIES = tuple(
    np.float32(coefficient)
    for coefficient in (
        0.07634492963552475,
        -0.12761574983596802,
        0.13160182535648346,
        -0.14201758801937103,
        0.16623356938362122,
        -0.20001226663589478,
        0.2500081956386566,
        -0.3333333134651184,
        0.5,
    )
)
"""(r - log(1 + r)) / r**2 by falling powers of r, fitted for sqrt(1/2) - 1 <= r <= sqrt(2) - 1.

Least squares, reweighted until the largest relative error of log(1 + r) was as small as can be: 6e-9, a tenth of
float32's rounding. The last two are the Taylor series'.
"""

BLOCK = 128
"""Columns that are moved at once into the window layout: those of 32 rows stay in the first-level cache."""


@intrinsic
def fused(typing, a, b, c):  # noqa: ARG001
    """Return a * b + c, rounded once."""
    return types.float32(types.float32, types.float32, types.float32), (
        lambda context, builder, sig, args: builder.fma(*args)  # noqa: ARG005
    )


@intrinsic
def split(typing, number):  # noqa: ARG001
    """Return the exponent and the mantissa of a normal, positive float32: sqrt(1/2) <= mantissa < sqrt(2)."""
    result = types.UniTuple(types.float32, 2)

    def operation(context, builder, sig, args):  # noqa: ARG001
        integer, real = ir.IntType(32), ir.FloatType()
        shifted = builder.sub(builder.bitcast(args[0], integer), integer(ROOT_HALF))
        exponent = builder.ashr(shifted, integer(MANTISSA_BITS))
        mantissa = builder.add(builder.and_(shifted, integer((1 << MANTISSA_BITS) - 1)), integer(ROOT_HALF))
        parts = builder.sitofp(exponent, real), builder.bitcast(mantissa, real)
        return context.make_tuple(builder, result, parts)

    return result(types.float32), operation


@njit(**_SMALL)
def minus_log(number):
    """Return -log(`number`) for a normal, positive float32: 2**exponent * (1 + r), the logarithm a series in r.

    It has no branch and no table, so that the compiler does it for a whole vector of pixels at once. The result is
    within 2 units in the last place.
    """
    exponent, mantissa = split(number)
    r = mantissa - ONE
    series = np.float32(0.0)
    for coefficient in SERIES:
        series = fused(series, r, coefficient)
    return fused(exponent, MINUS_LN_2, fused(r * r, series, -r))


@njit(**_LOOP)
def correct_row(pixels, dark, scale, take_log, keep_invalid, out):
    """Fill one row of `out`; return how many pixels are invalid: NaN, unless `keep_invalid` and no logarithm."""
    invalid = 0
    if take_log:
        for column in range(len(out)):
            light = (np.float32(pixels[column]) - dark[column]) * scale[column]
            valid = SMALLEST <= light <= LARGEST
            out[column] = minus_log(light) if valid else NO_NUMBER
            invalid += not valid
        return invalid
    for column in range(len(out)):
        light = (np.float32(pixels[column]) - dark[column]) * scale[column]
        valid = SMALLEST <= light <= LARGEST
        out[column] = light if valid or keep_invalid else NO_NUMBER
        invalid += not valid
    return invalid


@njit(**_LOOP)
def mend_row(row):
    """Replace NaN by values on the line between the nearest numbers left and right, or at an end the nearest one.

    A row without a number becomes 0.
    """
    columns = len(row)
    left = -1  # the last number that was met
    for column in range(columns):
        if math.isnan(row[column]):
            continue
        if column - left > 1:
            begin = row[left] if left >= 0 else row[column]
            rise = row[column] - begin
            for gap in range(left + 1, column):
                row[gap] = begin + rise * np.float32((gap - left) / (column - left))
        left = column
    row[left + 1 :] = row[left] if left >= 0 else np.float32(0.0)


@njit(**_PARALLEL)
def correct_rows(pixels, dark, scale, take_log, mend, out, invalid):
    """Fill `out` (rows, columns), and `invalid` (rows) with the number of invalid pixels."""
    for row in prange(len(pixels)):
        invalid[row] = correct_row(pixels[row], dark[row], scale[row], take_log, not mend, out[row])
        if mend and invalid[row]:
            mend_row(out[row])


@njit(**_LOOP)
def correct_slab(pixels, dark, scale, take_log, keep_invalid, out, invalid):
    """Fill `out` (columns, lanes) with up to `lanes` rows, a block of columns at a time; add to `invalid` (rows)."""
    columns, lanes = out.shape
    block = np.zeros((lanes, BLOCK + 1), np.float32)  # one more: rows that lie a power of two apart share few lines
    for start in range(0, columns, BLOCK):
        width = min(BLOCK, columns - start)
        for row in range(len(pixels)):
            there = slice(start, start + width)
            invalid[row] += correct_row(
                pixels[row, there], dark[row, there], scale[row, there], take_log, keep_invalid, block[row, :width]
            )
        for column in range(width):
            for lane in range(lanes):
                out[start + column, lane] = block[lane, column]


@njit(**_PARALLEL)
def correct_slabs(pixels, dark, scale, take_log, mend, out, invalid):
    """Fill `out` (slabs, columns, lanes) as `correct_rows` would; lanes without a row become 0."""
    slabs, _, lanes = out.shape
    for job in prange(slabs):
        slab = np.intp(job)
        first, end = slab * lanes, min(slab * lanes + lanes, len(pixels))
        invalid[first:end] = 0
        correct_slab(
            pixels[first:end], dark[first:end], scale[first:end], take_log, not mend, out[slab], invalid[first:end]
        )
        for row in range(first, end):
            if mend and invalid[row]:
                mend_row(out[slab, :, row - first])
