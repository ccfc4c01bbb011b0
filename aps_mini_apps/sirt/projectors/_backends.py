"""Which back ends there are, and what to do where one cannot be loaded."""

import importlib
from collections.abc import Callable
from typing import Literal

from aps_mini_apps.sirt.projectors._protocol import Projector

Backend = Literal["auto", "numba", "cuda", "numpy", "astra", "tomopy"]

# module, class, and how to come by what they import
_CLASSES = {
    "numba": ("compiled", "NumbaProjector", "it belongs to every installation: install mini-stream again"),
    "cuda": ("cuda", "CudaProjector", "it needs an NVIDIA GPU and `pip install 'mini-stream[cuda]'`"),
    "numpy": ("reference", "NumpyProjector", "it belongs to every installation: install mini-stream again"),
    "astra": ("with_astra", "AstraProjector", "`pip install 'mini-stream[astra]'`"),
    "tomopy": ("with_tomopy", "TomopyProjector", "it comes by conda only: `conda env create --file environment.yml`"),
}


def choose_backend(backend: Backend) -> Backend:
    """Return `backend`; for "auto", "cuda" where a GPU answers, else "numba"."""
    if backend != "auto":
        return backend
    try:
        load_backend("cuda")
    except ValueError:
        return "numba"
    return "cuda"


def load_backend(backend: Backend) -> Callable[..., Projector]:
    """Return the class of a back end.

    Raises
    ------
    ValueError
        If there is none of that name, or it cannot run on this machine: says why, and what to do.
    """
    backend = choose_backend(backend)
    if backend not in _CLASSES:
        raise ValueError(f"back end {backend!r} does not exist: use one of auto, {', '.join(_CLASSES)}")
    # Imported here: Numba takes a second to load, and most machines have no GPU.
    module, name, remedy = _CLASSES[backend]
    try:
        found: Callable[..., Projector] = getattr(importlib.import_module(f"{__package__}.{module}"), name)
    except ImportError as error:
        raise ValueError(
            f"back end {backend} cannot be used here ({error}): {remedy}; or take --backend numba"
        ) from error
    return found
