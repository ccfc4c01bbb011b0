"""Random frames for tests of throughput: the APS mini-apps' mode 2, with flats and darks to correct them."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from aps_mini_apps.daq.sources import Pixels
from aps_mini_apps.frames import FrameKind, RowRange
from aps_mini_apps.geometry import equal_angles

DARK, FLAT = 100, 60_000
"""Counts of every dark and flat pixel; those of projections lie between, so that each can be corrected."""


class RandomSource:
    """Frames of random uint16 counts over one full turn; each depends on `seed` and its index alone."""

    def __init__(
        self,
        *,
        columns: int = 2048,
        rows: int = 2048,
        projections: int = 1440,
        seed: int = 0,
        flats: int = 10,
        darks: int = 10,
    ) -> None:
        self.name = "random"
        self.rows, self.columns = rows, columns
        self.detector_rows = RowRange(start=0, stop=rows, total=rows)
        self.angles = equal_angles(projections, 2 * math.pi)
        self.center: float | None = None
        self.flat_count, self.dark_count = flats, darks
        self._seed = seed

    def flats(self) -> Iterator[Pixels]:
        """Yield equal flats."""
        return self._constant(FLAT, self.flat_count)

    def darks(self) -> Iterator[Pixels]:
        """Yield equal darks."""
        return self._constant(DARK, self.dark_count)

    def projections(self, order: Sequence[int]) -> Iterator[Pixels]:
        """Yield the projections with these indices."""
        for index in order:
            generator = np.random.default_rng((self._seed, FrameKind.PROJECTION, index))
            yield generator.integers(DARK + 1, FLAT, (self.rows, self.columns), dtype=np.uint16)

    def _constant(self, value: int, count: int) -> Iterator[Pixels]:
        for _ in range(count):
            yield np.full((self.rows, self.columns), value, dtype=np.uint16)
