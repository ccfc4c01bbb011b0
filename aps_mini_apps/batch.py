"""A whole scan at once, without a stream: the same parts as the three programs, joined by plain iteration.

What the programs make of a scan and what `reconstruct` makes of it are therefore equal bit for bit.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aps_mini_apps.daq.hdf5 import open_scan
from aps_mini_apps.daq.sources import Source
from aps_mini_apps.daq.stream import frames
from aps_mini_apps.dist.correction import Correction
from aps_mini_apps.dist.distributor import Distributor
from aps_mini_apps.dist.stripes import StripeFilter
from aps_mini_apps.frames import Frame, RowRange
from aps_mini_apps.geometry import LeaningAxis
from aps_mini_apps.sirt import axis
from aps_mini_apps.sirt.projectors import Backend, Model, Norm, choose_backend, make_projector
from aps_mini_apps.sirt.projectors.memory import Task, check_memory
from aps_mini_apps.sirt.reconstruction import Reconstruction
from aps_mini_apps.sirt.user_algorithm import choose_algorithm

AXIS_ROWS = 16
"""Detector rows around the middle from which the rotation axis is judged."""


def projections(source: Source, *, remove_stripes: bool = False) -> Iterator[Frame]:
    """Yield the corrected projections of `source`: float32 line integrals (rows, columns), in order."""
    distributor = Distributor(Correction(), stripes=StripeFilter() if remove_stripes else None)
    for frame in frames(source, scan=""):
        yield from distributor.accept(frame)
    yield from distributor.finish()


def find_center(source: Source) -> float | None:
    """Return the rotation axis of `source`, in columns, or None if no two projections face each other.

    A first guess comes from the pair of projections nearest to 180 degrees apart; it is refined by the slices
    that are reconstructed with it. Meant for a source of few rows (`open_scan(path, rows=…)`).
    """
    pair = axis.find_pair(source.angles)
    if pair is None:
        return None
    middle, opposites, sinogram = source.rows // 2, [], []
    for index, frame in enumerate(projections(source)):
        pixels = np.asarray(frame.pixels, np.float32)
        sinogram.append(pixels[middle].copy())
        if index in pair:
            opposites.append(pixels)
    return axis.refine(np.stack(sinogram), source.angles, axis.from_pair(*opposites))


def reconstruct(
    scan: str | Path | Source,
    *,
    iterations: int = 30,
    center: float | str | None = None,
    length: int | None = None,
    step: int | None = None,
    remove_stripes: bool = False,
    backend: Backend = "numba",
    model: Model = "exact",
    norm: Norm = "squared",
    circle: float | None = None,
    algorithm: str = "sirt",
    parameters: Mapping[str, Any] | None = None,
) -> npt.NDArray[np.float32]:
    """Reconstruct a scan, by SIRT unless told otherwise.

    Parameters
    ----------
    scan
        A DXchange HDF5 file, or any source of frames.
    iterations
        Updates per window.
    center
        Rotation axis, columns; "A:B" for one that leans, from A at the first row to B at the last; None takes the
        source's, or the middle of the detector.
    length, step
        Window length and step in projections; all of them unless given: then there is one window.
    backend, model, norm, circle
        As `make_projector` takes them.
    algorithm, parameters
        As `--algorithm` and `--parameter` of `ministream sirt` take them.

    Returns
    -------
    volume
        (slices, rows, columns) float32, attenuation per pixel.

    Raises
    ------
    UserError
        If the file cannot be read or there is no such algorithm; ValueError for a centre outside the detector.
    """
    with ExitStack() as stack:
        source = stack.enter_context(open_scan(scan)) if isinstance(scan, str | Path) else scan
        count = len(source.angles)
        return reconstruct_frames(
            projections(source, remove_stripes=remove_stripes),
            iterations=iterations,
            center=center,
            length=length or count,
            step=step or count,
            backend=backend,
            model=model,
            norm=norm,
            circle=circle,
            algorithm=algorithm,
            parameters=parameters,
        )


def reconstruct_frames(
    corrected: Iterable[Frame],
    *,
    iterations: int,
    length: int,
    step: int,
    center: float | str | None = None,
    backend: Backend = "numba",
    model: Model = "exact",
    norm: Norm = "squared",
    circle: float | None = None,
    algorithm: str = "sirt",
    parameters: Mapping[str, Any] | None = None,
) -> npt.NDArray[np.float32]:
    """Reconstruct corrected projections (float32 line integrals), window by window; see `reconstruct`."""
    arrivals = iter(corrected)
    first = next(arrivals)
    slices, columns = first.pixels.shape
    chosen = choose_algorithm(algorithm, parameters)
    rows, axis_per_slice = first.rows or RowRange(start=0, stop=slices, total=slices), isinstance(center, str)
    axis_of_rows = LeaningAxis.parse(center).centers(rows) if isinstance(center, str) else center
    task = Task(
        columns=columns,
        window=length,
        held=chosen.held(length),
        backend=choose_backend(backend),
        axis_per_slice=axis_per_slice,
    )
    check_memory(slices, task)
    projector = make_projector(
        backend, slices, columns, model=model, norm=norm, circle=circle, axis_per_slice=axis_per_slice
    )
    reconstruction = Reconstruction(
        projector,
        length=length,
        step=step,
        iterations=iterations,
        center=axis_of_rows,
        algorithm=chosen,
    )
    for _update in reconstruction.run(chain([first], arrivals)):
        pass
    return reconstruction.volume()
