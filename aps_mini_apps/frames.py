"""The values that travel: frames of a scan, their row ranges, and reconstructed volumes. No I/O.

A scan is an ordered series of frames of three kinds. Flats (`white` in the APS mini-apps) are taken with the
beam and without the sample, darks without the beam, projections with both. Angles are radians, always.
"""

import enum
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt


class FrameKind(enum.IntEnum):
    """What a detector frame shows; the numbers are those of the TImage wire format."""

    PROJECTION = 1
    FLAT = 2
    DARK = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRange:
    """Rows `start` to `stop` (exclusive) of `total` rows."""

    start: int
    stop: int
    total: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop <= self.total:
            raise ValueError(f"rows {self.start} to {self.stop} do not lie within {self.total} rows")

    @property
    def count(self) -> int:
        """Number of rows."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frame:
    """One detector frame, or (with `rows`) one slab of its rows.

    Attributes
    ----------
    kind
        Projection, flat or dark.
    pixels
        (rows, columns), any numeric dtype: detector counts, or line integrals once corrected (float32).
    sequence
        Packet number: position in the stream, counting every packet of the scan from 0.
    number
        Frame number: which exposure of the scan this is; a repeated exposure keeps its number.
    angle
        Rotation of the sample, radians.
    center
        Position of the rotation axis, in columns (`columns / 2` is the middle); None where unknown.
    resets
        A flat or dark that starts its set anew: earlier ones of its kind are to be forgotten.
    rows
        Which rows of a larger whole these are: of the detector's, where the acquisition was asked for some of them; of
        the distributed ones, in a worker's slab. None for the whole.
    scan
        Identity of the scan; empty where the sender does not say.
    timestamp_ns
        When the frame was taken, nanoseconds since 1970 UTC; 0 where the sender does not say.
    numbered
        The sender counts packets without gaps, so a jump of `sequence` is a loss. (Senders of the APS
        mini-apps number by position in the file and send out of order: there a jump says nothing.)
    """

    kind: FrameKind
    pixels: npt.NDArray[np.generic]
    sequence: int = 0
    number: int = 0
    angle: float = 0.0
    center: float | None = None
    resets: bool = False
    rows: RowRange | None = None
    scan: str = ""
    timestamp_ns: int = 0
    numbered: bool = True

    def __post_init__(self) -> None:
        if self.pixels.ndim != 2:
            raise ValueError(f"a frame has rows and columns, not the shape {self.pixels.shape}")

    def slab(self, rows: RowRange) -> "Frame":
        """Return the part of this frame that holds `rows`: a view, no copy."""
        return replace(self, pixels=self.pixels[rows.start : rows.stop], rows=rows)

    def check_continues(self, first: "Frame") -> None:
        """Raise ValueError unless this frame is of the scan that `first` began, and of its shape and rows."""
        if self.scan != first.scan:
            raise ValueError(
                f"a frame of scan {self.scan!r} came in the middle of scan {first.scan!r}: the acquisition was started"
                " anew, so start the programs behind it anew, too"
            )
        if (self.pixels.shape, self.rows) != (first.pixels.shape, first.rows):
            raise ValueError(
                f"frame {self.number} has {self.extent}, but the scan began with {first.extent}:"
                " all frames of a scan must agree"
            )

    @property
    def extent(self) -> str:
        """Rows and columns in words."""
        rows, columns = self.pixels.shape
        start = self.rows.start if self.rows else 0
        return f"rows {start} to {start + rows - 1} of {columns} columns"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Volume:
    """A reconstructed slab: `data` (slices, rows, columns) float32, after window `window`."""

    data: npt.NDArray[np.float32]
    window: int = 0
    center: float | None = None
    scan: str = ""
    rows: RowRange | None = None
