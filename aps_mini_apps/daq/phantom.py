"""A scan of a sample that exists as formulas only: ten ellipsoids, after Shepp and Logan, seen by a detector.

Lengths are in half-widths of the detector, so that it spans -1 to 1; the rotation axis is z. The rows span
`HEIGHT` of it: they lie further apart than the columns, so that few rows already show how the sample changes.
Its attenuation is scaled for the most opaque ray to have the line integral `OPAQUE`.

What the detector counts is the beam (uneven, times each pixel's own gain), weakened by the sample's exact
line integrals, with photon noise, on top of an offset with read noise, as uint16. Faults, on request: hot
pixels, stuck at the largest count in every frame; stripes, columns whose gain differs while the sample is in
the beam, which the flats therefore do not show; a rotation axis off the middle. Every frame depends on `seed`
and its own index alone, whatever was asked for before.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aps_mini_apps.daq.sources import Pixels
from aps_mini_apps.frames import FrameKind, RowRange
from aps_mini_apps.geometry import check_center, equal_angles


@dataclass(frozen=True, slots=True)
class Ellipsoid:
    """Adds `value` inside; semi-axes a, b, c, middle (x, y, z), a turned from x towards y by `tilt` radians."""

    value: float
    a: float
    b: float
    c: float
    x: float
    y: float
    z: float
    tilt: float = 0.0

    @property
    def axes(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Directions (x, y) of the semi-axes a and b."""
        cos, sin = math.cos(self.tilt), math.sin(self.tilt)
        return (cos, sin), (-sin, cos)


SAMPLE = (
    Ellipsoid(1.00, 0.66, 0.86, 0.90, 0, 0, 0),
    Ellipsoid(-0.80, 0.625, 0.815, 0.86, 0, -0.012, 0),
    Ellipsoid(-0.20, 0.12, 0.30, 0.55, 0.21, 0, 0.05, math.radians(-18)),
    Ellipsoid(-0.20, 0.16, 0.38, 0.62, -0.21, 0, -0.05, math.radians(18)),
    Ellipsoid(0.10, 0.20, 0.24, 0.45, 0, 0.35, 0.1),
    Ellipsoid(0.10, 0.045, 0.045, 0.30, 0, 0.08, 0.25),
    Ellipsoid(0.10, 0.045, 0.045, 0.30, 0, -0.10, -0.25),
    Ellipsoid(0.10, 0.045, 0.023, 0.20, -0.08, -0.58, -0.1),
    Ellipsoid(0.10, 0.023, 0.023, 0.20, 0, -0.58, 0.1),
    Ellipsoid(0.10, 0.023, 0.045, 0.30, 0.06, -0.58, 0),
)
"""A shell, what it holds, two hollows and six details: contrasts as in Toft's modified phantom, 0 to 1."""

LONGEST = 0.5623
"""Largest line integral through `SAMPLE` within `HEIGHT`, found by search: along the shell, 10.5 degrees off y."""

OPAQUE = 2.0
"""The line integral that it is scaled to: 13.5 % of the beam come through."""

HEIGHT = 0.5
"""The rows span -0.5 to 0.5 in z."""

ACROSS, ALONG = 4, 2
"""Samples of which a pixel or voxel is the mean: per column and direction in the slice, per row."""

DARK_OFFSET, READ_NOISE = 100.0, 2.0
"""Mean count without beam, and its standard deviation from frame to frame."""

SATURATED = np.iinfo(np.uint16).max

MOST_PHOTONS = 59_000.0
"""Beyond, the best pixels (gain 1.1) would saturate."""

_BEAM, _FAULTS = 100, 101
"""Seeds of what stays the same over the scan; those of the frames are their kinds, 1 to 3."""

Map = npt.NDArray[np.float64]


class PhantomSource:
    """A scan of `SAMPLE` (see `sources.Source`).

    Parameters
    ----------
    columns, rows, projections
        Size of the scan.
    span
        The angles go in equal steps from 0 to this, radians, itself not included.
    seed
        Of all that is random.
    photons
        Mean count of a flat where the beam is brightest.
    noise
        Photon and read noise; without, counts are rounded expectations.
    flats, darks
        Numbers of frames.
    hot_pixels
        Number of pixels that always count `SATURATED`.
    stripes
        Number of stripes; each is one to three columns wide and goes through all rows.
    stripe_amplitude
        Gains within stripes differ from 1 by half of this to all of it, up or down.
    center_offset
        Distance of the rotation axis from the middle of the detector, columns. Beyond about 7 % of them the
        sample leaves the detector at some angles.

    Raises
    ------
    ValueError
        If a number is out of range.
    """

    def __init__(
        self,
        *,
        columns: int = 256,
        rows: int = 16,
        projections: int = 180,
        span: float = math.pi,
        seed: int = 0,
        photons: float = 20_000.0,
        noise: bool = True,
        flats: int = 10,
        darks: int = 10,
        hot_pixels: int = 5,
        stripes: int = 3,
        stripe_amplitude: float = 0.05,
        center_offset: float = 3.0,
    ) -> None:
        if min(columns, rows, projections, flats, darks) < 1:
            raise ValueError("a phantom scan has at least one column, row, projection, flat and dark")
        if not 0 < photons <= MOST_PHOTONS:
            raise ValueError(f"{photons:g} photons a pixel do not fit into 16 bits: choose 1 to {MOST_PHOTONS:g}")
        self.name = "phantom"
        self.columns, self.rows = columns, rows
        self.detector_rows = RowRange(start=0, stop=rows, total=rows)
        self.angles = equal_angles(projections, span)
        self.center: float | None = check_center(columns / 2 + center_offset, columns)
        self.flat_count, self.dark_count = flats, darks
        self._seed, self._noise = seed, noise
        self._scale = OPAQUE / LONGEST
        self._z = _samples(rows, ALONG) * HEIGHT
        self._s = _samples(columns, ACROSS) - 2 * center_offset / columns
        self._beam, self._offset = self._make_beam(photons)
        self._hot, self._stripe_gain = self._make_faults(hot_pixels, stripes, stripe_amplitude)

    def flats(self) -> Iterator[Pixels]:
        """Yield the flats, uint16 (rows, columns)."""
        for index in range(self.flat_count):
            yield self._expose(self._beam, FrameKind.FLAT, index)

    def darks(self) -> Iterator[Pixels]:
        """Yield the darks, uint16 (rows, columns)."""
        for index in range(self.dark_count):
            yield self._expose(np.zeros_like(self._beam), FrameKind.DARK, index)

    def projections(self, order: Sequence[int]) -> Iterator[Pixels]:
        """Yield the projections with these indices, uint16 (rows, columns)."""
        for index in order:
            through = np.exp(-self.line_integrals(index))
            yield self._expose(self._beam * self._stripe_gain * through, FrameKind.PROJECTION, index)

    def line_integrals(self, index: int) -> Map:
        """Return the exact -log of transmission of projection `index`, (rows, columns)."""
        angle = self.angles[index]
        cos, sin = math.cos(angle), math.sin(angle)
        fine = np.zeros((self._z.size, self._s.size))
        for part in SAMPLE:
            _add_chords(fine, part, cos, sin, self._z, self._s)
        pixels: Map = np.einsum("rack->rc", fine.reshape(self.rows, ALONG, self.columns, ACROSS))  # sums samples
        return pixels * (self._scale / (ALONG * ACROSS))

    def truth(self) -> npt.NDArray[np.float32]:
        """Return the sample as a reconstruction shows it: (rows, columns, columns), attenuation per pixel.

        Slice, row, column as in `geometry`; the rotation axis is the middle of each slice, wherever it is on
        the detector. A voxel is the mean of `ALONG` x `ACROSS` x `ACROSS` samples.
        """
        volume = np.zeros((self.rows, self.columns, self.columns))
        line = _samples(self.columns, ACROSS).reshape(self.columns, ACROSS).T
        for part in SAMPLE:
            _add_inside(volume, part, self._z, line)
        volume *= self._scale * 2 / self.columns / (ALONG * ACROSS * ACROSS)  # per half-width -> per pixel
        return volume.astype(np.float32)

    def _make_beam(self, photons: float) -> tuple[Map, Map]:
        """Return what the flats and the darks expect, (rows, columns)."""
        random = np.random.default_rng((self._seed, _BEAM))
        shape = self.rows, self.columns
        y, x = np.meshgrid(_samples(self.rows, 1), _samples(self.columns, 1), indexing="ij")
        light = np.exp(-0.3 * (x - 0.1) ** 2 - 0.2 * (y + 0.1) ** 2)
        gain = np.clip(random.normal(1.0, 0.02, shape), 0.9, 1.1)
        beam: Map = photons * light * gain
        return beam, np.clip(random.normal(DARK_OFFSET, 3.0, shape), 50.0, None)

    def _make_faults(self, hot_pixels: int, stripes: int, amplitude: float) -> tuple[npt.NDArray[np.int64], Map]:
        """Return the flat indices of hot pixels, and the gain of each column while the sample is there."""
        random = np.random.default_rng((self._seed, _FAULTS))
        pixels = self.rows * self.columns
        hot = random.choice(pixels, min(hot_pixels, pixels), replace=False)
        gain = np.ones(self.columns)
        for _ in range(stripes):
            first, width = random.integers(self.columns), random.integers(1, 4)
            gain[first : first + width] = 1 + random.choice((-1, 1)) * random.uniform(0.5, 1) * amplitude
        return hot, gain

    def _expose(self, photons: Map, kind: FrameKind, index: int) -> Pixels:
        if self._noise:
            random = np.random.default_rng((self._seed, int(kind), index))
            photons = random.poisson(photons) + READ_NOISE * random.standard_normal(photons.shape)
        frame = np.clip(np.rint(self._offset + photons), 0, SATURATED).astype(np.uint16)
        frame.flat[self._hot] = SATURATED
        return frame


def _samples(pixels: int, each: int) -> Map:
    """Return the coordinates of `each` samples in every pixel of a line from -1 to 1."""
    half = 1 / (pixels * each)
    return np.linspace(half - 1, 1 - half, pixels * each)


def _add_chords(fine: Map, part: Ellipsoid, cos: float, sin: float, z: Map, s: Map) -> None:
    """Add to `fine` (z, s) the lengths of the rays within `part`, times its value.

    A ray at s = x cos - y sin cuts the ellipse at height z (shrunk by q = 1 - ((z - z0) / c)^2) in a chord of
    length 2 a b sqrt(r^2 q - d^2) / r^2, with r its half-width as seen along the rays, d the ray's distance
    from the middle.
    """
    (ux, uy), (vx, vy) = part.axes
    r2 = (part.a * (ux * cos - uy * sin)) ** 2 + (part.b * (vx * cos - vy * sin)) ** 2
    distance = s - (part.x * cos - part.y * sin)
    near = slice(*np.searchsorted(distance, (-math.sqrt(r2), math.sqrt(r2))))
    chord = np.subtract.outer(r2 * (1 - ((z - part.z) / part.c) ** 2), distance[near] ** 2)
    np.sqrt(np.maximum(chord, 0, out=chord), out=chord)
    chord *= part.value * 2 * part.a * part.b / r2
    fine[:, near] += chord


def _add_inside(volume: Map, part: Ellipsoid, z: Map, line: Map) -> None:
    """Add to every voxel of `volume` how many of its samples lie in `part`, times its value.

    `line` (sample, pixel) holds the coordinates in the slice. Samples come first in all arrays, so that
    counting them is adding up whole images.
    """
    reach = max(part.a, part.b)
    columns = _covering(line, part.x - reach, part.x + reach)
    rows = _covering(line, part.y - reach, part.y + reach)
    x, y = line[np.newaxis, :, np.newaxis, columns] - part.x, line[:, np.newaxis, rows, np.newaxis] - part.y
    (ux, uy), (vx, vy) = part.axes
    radius2 = ((x * ux + y * uy) / part.a) ** 2 + ((x * vx + y * vy) / part.b) ** 2
    samples, lines, *pixels = radius2.shape
    radius2 = radius2.reshape(samples * lines, *pixels)  # of a small detail between samples there are no pixels
    for index, height in enumerate(z):
        inside = radius2 <= 1 - ((height - part.z) / part.c) ** 2
        volume[index // ALONG, rows, columns] += part.value * np.add.reduce(inside.view(np.uint8), axis=0)


def _covering(line: Map, low: float, high: float) -> slice:
    """Return the pixels that have a sample between `low` and `high`."""
    return slice(int(np.searchsorted(line[-1], low)), int(np.searchsorted(line[0], high, side="right")))
