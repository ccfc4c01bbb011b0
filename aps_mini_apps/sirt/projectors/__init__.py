"""Projectors: the forward projection A of a slab of slices and its transpose A', for parallel beam.

Back ends behind one Protocol: `numba` (compiled and fast), `cuda` (a GPU), `numpy` (the reference: clear and slow),
`astra` and `tomopy` (other packages). They are the same matrix up to rounding. Volumes, sinograms and geometries stay
in the back end's own layout; only `import_volume`, `measure`, `export_volume` and `export_sinogram` know plain arrays.
"""

import math

from aps_mini_apps.sirt.projectors._backends import Backend, choose_backend, load_backend
from aps_mini_apps.sirt.projectors._footprint import Model, Norm
from aps_mini_apps.sirt.projectors._protocol import Projector
from aps_mini_apps.sirt.projectors.per_slice import PerSliceProjector

__all__ = ["Backend", "Model", "Norm", "Projector", "choose_backend", "load_backend", "make_projector"]


def make_projector(
    backend: Backend,
    slices: int,
    columns: int,
    *,
    model: Model = "exact",
    norm: Norm = "squared",
    circle: float | None = None,
    axis_per_slice: bool = False,
    half: bool = False,
) -> Projector:
    """Return a projector.

    Parameters
    ----------
    backend
        "numba" (fast; as many threads as `numba.get_num_threads()`), "cuda" (a GPU), "auto" (cuda where a GPU answers,
        else numba), "numpy" (the reference), "astra" or "tomopy" (those packages, where they are installed).
    slices, columns
        Slices of the slab; columns of the detector, and rows and columns of each slice.
    model
        Weight of a pixel on a ray: "exact" intersection length (Siddon), or "joseph" (interpolation).
    norm
        Row norm: sum of the "squared" lengths (Trace, TomoPy) or of the "plain" lengths (ASTRA).
    circle
        Reconstruct only within a circle around the image's middle, its diameter as a share of the detector's width:
        pixels outside are no part of A, and stay 0. None: the whole square.
    axis_per_slice
        `geometry` takes one centre per slice as well as one for all. Slower: see `per_slice`.
    half
        Store volumes and measured sinograms in 16 bits instead of 32: back end cuda only.

    Raises
    ------
    ValueError
        If there is no such back end, or not on this machine, no such model or norm, the circle is not positive,
        or the slab is empty or too large.
    """
    for name, value, known in (
        ("model", model, ("exact", "joseph")),
        ("norm", norm, ("squared", "plain")),
    ):
        if value not in known:
            raise ValueError(f"{name} {value!r} does not exist: use {known[0]!r} or {known[1]!r}")
    if slices < 1 or columns < 1:
        raise ValueError(f"a slab has at least one slice and one column, not {slices} and {columns}")
    if circle is not None and not 0.0 < circle < math.inf:
        raise ValueError(f"a reconstruction circle of {circle:g} of the detector's width: give more than 0, usually 1")
    if half and choose_backend(backend) != "cuda":
        raise ValueError(f"back end {choose_backend(backend)} stores in 32 bits only: use --backend cuda, or no --half")
    if axis_per_slice:
        backend = "numba" if backend == "auto" else backend
        if backend == "cuda":
            raise ValueError("back end cuda has no axis per slice: use numba, numpy or astra")
        single = make_projector(backend, 1, columns, model=model, norm=norm, circle=circle)
        return PerSliceProjector(single, slices, axis=0 if backend == "numba" else 1)
    return load_backend(backend)(slices, columns, model, norm, circle, **({"half": True} if half else {}))
