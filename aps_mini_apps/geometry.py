"""Angles and rows of a parallel-beam scan: the one home of their conventions. No I/O.

Image `f[row, col]` of N x N unit pixels; a ray at angle theta (radians) and detector coordinate s satisfies
`s = (col - (N-1)/2) cos(theta) - (row - (N-1)/2) sin(theta)`. The middle of detector column c lies at
`s = c + 0.5 - center`: a centre of N/2 is the middle of the detector. This is TomoPy's convention.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aps_mini_apps.frames import RowRange

TWO_PI = 2.0 * math.pi


def equal_angles(count: int, span: float = math.pi, *, endpoint: bool = False) -> npt.NDArray[np.float64]:
    """Return `count` angles in equal steps over 0..`span` (radians), without `span` itself unless asked."""
    return np.linspace(0.0, span, count, endpoint=endpoint)


def wrap_float32(angle: float) -> np.float32:
    """Return `angle` as a float32 in [0, 2 pi).

    Outside that range the APS worker picks wrong quadrants; the rounding to float32 alone can reach 2 pi.
    """
    wrapped = np.float32(angle % TWO_PI)
    return wrapped if wrapped < np.float32(TWO_PI) else np.float32(0.0)


def wrap_degrees_float32(angle: float) -> np.float32:
    """Return `angle` (radians) in degrees as a float32 in [0, 360), for readers that wrap nothing themselves."""
    wrapped = np.float32(math.degrees(angle) % 360.0)
    return wrapped if wrapped < np.float32(360.0) else np.float32(0.0)


def partition_rows(total: int, workers: int) -> list[RowRange]:
    """Split `total` rows as evenly as possible; the first `total % workers` slabs get one row more.

    Raises
    ------
    ValueError
        If there are more workers than rows.
    """
    if not 1 <= workers <= total:
        raise ValueError(f"{workers} workers cannot share {total} rows: use 1 to {total} workers")
    size, extra = divmod(total, workers)
    starts = [rank * size + min(rank, extra) for rank in range(workers + 1)]
    return [RowRange(start=a, stop=b, total=total) for a, b in itertools.pairwise(starts)]


def check_center(center: float, columns: int) -> float:
    """Return `center` if it lies on a detector of `columns` columns.

    Raises
    ------
    ValueError
        If it does not.
    """
    if not 0.0 < center < columns:
        raise ValueError(f"centre {center:g} lies outside the detector: give one between 0 and {columns} columns")
    return center


@dataclass(frozen=True, slots=True)
class LeaningAxis:
    """A rotation axis that leans against the detector's columns: its centre differs by row.

    Attributes
    ----------
    first, last
        Centre at the first and at the last of the distributed rows, columns; linear between.
    """

    first: float
    last: float

    @classmethod
    def parse(cls, text: str) -> "LeaningAxis":
        """Return the axis that is written `FIRST:LAST`.

        Raises
        ------
        ValueError
            If it is not.
        """
        first, _, last = text.partition(":")
        try:
            return cls(float(first), float(last))
        except ValueError as error:
            raise ValueError(f"{text!r} is no rotation axis: give columns, as 296, or as 295.5:296.5") from error

    def check(self, columns: int) -> None:
        """Raise ValueError if an end of it does not lie on a detector of `columns` columns."""
        check_center(self.first, columns)
        check_center(self.last, columns)

    def centers(self, rows: RowRange) -> npt.NDArray[np.float64]:
        """Return the centre of each of `rows`."""
        share = np.arange(rows.start, rows.stop) / max(rows.total - 1, 1)
        return self.first + (self.last - self.first) * share

    def __str__(self) -> str:
        return f"{self.first:g}:{self.last:g}"
