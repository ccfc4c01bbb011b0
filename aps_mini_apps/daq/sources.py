"""What every source of frames offers, be it a file, a phantom or a detector."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from aps_mini_apps.frames import RowRange

Pixels = npt.NDArray[Any]
"""One detector frame (rows, columns) of a real numeric dtype in the machine's byte order."""


class Source(Protocol):
    """A scan: its size and angles at once, its frames one after the other.

    Attributes
    ----------
    name
        What people call it: the file's name, or `phantom`.
    rows, columns
        Size of a frame, pixels.
    detector_rows
        Which rows of the detector these are.
    angles
        Rotation of the sample, radians, one value per projection in the order of exposure.
    center
        Column of the rotation axis (`columns / 2` is the middle); None where unknown.
    flat_count, dark_count
        Number of flats and darks; at least one of each.
    """

    name: str
    rows: int
    columns: int
    detector_rows: RowRange
    angles: npt.NDArray[np.float64]
    center: float | None
    flat_count: int
    dark_count: int

    def flats(self) -> Iterator[Pixels]:
        """Yield the flats (beam without sample), each (rows, columns)."""
        ...

    def darks(self) -> Iterator[Pixels]:
        """Yield the darks (no beam), each (rows, columns)."""
        ...

    def projections(self, order: Sequence[int]) -> Iterator[Pixels]:
        """Yield the projections with these indices into `angles`, each read or made when it is asked for."""
        ...
