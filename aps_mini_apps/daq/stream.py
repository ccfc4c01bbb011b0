"""From a source to the frames that travel: flats, then darks, then the projections that they correct."""

import math
from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt

from aps_mini_apps.daq.sources import Pixels, Source
from aps_mini_apps.frames import Frame, FrameKind

SUBSET = 16
"""About how many projections one round of the interleaved order takes, as in the APS mini-apps."""


def natural(total: int) -> Sequence[int]:
    """Return the indices 0 to `total - 1` as they were exposed."""
    return range(total)


def interleaved(total: int) -> Sequence[int]:
    """Return the APS mini-apps' order: i, i + n, i + 2n, … for i = 0 to n - 1, with n = ceil(total / 16).

    Every round of about 16 projections covers the whole range of angles, so that a first coarse image needs
    one round only.
    """
    step = math.ceil(total / SUBSET)
    return [index for first in range(step) for index in range(first, total, step)]


def frame_count(source: Source, repeats: int = 1) -> int:
    """Return how many frames `frames` yields."""
    return source.flat_count + source.dark_count + repeats * len(source.angles)


def frames(
    source: Source,
    *,
    scan: str,
    repeats: int = 1,
    interleave: bool = False,
    dtype: npt.DTypeLike | None = None,
) -> Iterator[Frame]:
    """Yield the frames of a scan in the order in which they leave.

    Flats first, then darks (the first of each resets its set), then the projections, `repeats` times.
    `sequence` counts what is yielded, from 0 without gaps. `number` counts exposures in one series, as the
    APS mini-apps' `uniqueId` does: flats from 0, then darks, then projections in natural order. So a
    projection that is repeated, or leaves in another order, keeps its number.

    Parameters
    ----------
    source
        Where the pixels come from; read no faster than frames are taken from this iterator.
    scan
        Identity of the scan.
    repeats
        How often the projections are sent; flats and darks leave once.
    interleave
        Send the projections in `interleaved` order instead of the natural one.
    dtype
        Convert pixels to this type; None leaves them as they are.
    """
    order = (interleaved if interleave else natural)(len(source.angles))
    first_projection = source.flat_count + source.dark_count
    exposures = chain(
        ((FrameKind.FLAT, number, pixels) for number, pixels in enumerate(source.flats())),
        ((FrameKind.DARK, number, pixels) for number, pixels in enumerate(source.darks(), source.flat_count)),
        (
            (FrameKind.PROJECTION, first_projection + index, pixels)
            for _ in range(repeats)
            for index, pixels in zip(order, source.projections(order), strict=True)
        ),
    )
    part = source.detector_rows if source.detector_rows.count < source.detector_rows.total else None
    first_of_kind = {FrameKind.FLAT: 0, FrameKind.DARK: source.flat_count}
    for sequence, (kind, number, pixels) in enumerate(exposures):
        yield Frame(
            kind=kind,
            pixels=_convert(pixels, dtype),
            sequence=sequence,
            number=number,
            angle=float(source.angles[number - first_projection]) if kind is FrameKind.PROJECTION else 0.0,
            resets=first_of_kind.get(kind) == number,
            center=source.center,
            rows=part,
            scan=scan,
        )


def _convert(pixels: Pixels, dtype: npt.DTypeLike | None) -> Pixels:
    if dtype is None:
        return pixels
    with np.errstate(over="ignore"):  # a float64 too large for float32 becomes infinite: an invalid pixel
        return pixels.astype(dtype, copy=False)
