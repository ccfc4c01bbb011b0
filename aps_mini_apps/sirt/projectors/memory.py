"""What a slab needs of the memory, and whether that is there: asked before anything is allocated."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from aps_mini_apps.sirt.projectors._backends import Backend
from aps_mini_apps.sirt.projectors._layout import choose_lanes

_FLOAT, _HALF = 4, 2
_GIB = 2**30
_PADDING = 3
"""Pixels and bins that a projector adds to rows and columns, about."""
_RAY = 12
"""Bytes that a geometry holds of each ray: where it enters and leaves the image, and its weight."""
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """How much is held at once, at worst, beside the volume and the sinogram of a window.

    Attributes
    ----------
    volumes, sinograms
        As large as those.
    geometries
        Of parts of the window, with the weights of all pixels each.
    """

    volumes: float = 0.0
    sinograms: float = 0.0
    geometries: int = 0

    def __add__(self, other: "Held") -> "Held":
        """Return both together."""
        return Held(
            volumes=self.volumes + other.volumes,
            sinograms=self.sinograms + other.sinograms,
            geometries=self.geometries + other.geometries,
        )


_OWN: dict[Backend, Held] = {
    "cuda": Held(volumes=0.25, sinograms=4),
    "numpy": Held(volumes=5, sinograms=5),
    "astra": Held(volumes=4, sinograms=4),
    "tomopy": Held(volumes=4, sinograms=4),
}
"""What back ends make for themselves while they project; numba's part is counted with the algorithms."""

_WEIGHTS: dict[Backend, tuple[int, int]] = {
    "numba": (1, 1),
    "cuda": (0, 0),
    "numpy": (26, 2),
    "astra": (8, 2),
    "tomopy": (8, 2),
}
"""Of pixels, in images of one slice: how many are in use while a back end projects, and are kept with each geometry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is to be done with a slab, as far as memory depends on it.

    Attributes
    ----------
    columns, window
        Columns of the detector; projections of a window.
    held
        By the algorithm.
    backend
        Which it is; not "auto".
    half
        Its volumes and sinograms have 16 bits.
    copies
        Of the volume as plain arrays, to be written and published.
    history
        Bytes of projections that are kept for a new start.
    axis_per_slice
        Every slice has a geometry of its own.
    """

    columns: int
    window: int
    held: Held = field(default_factory=Held)
    backend: Backend = "numba"
    half: bool = False
    copies: int = 1
    history: int = 0
    axis_per_slice: bool = False


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes that a reconstruction holds at once.

    Attributes
    ----------
    volume
        The slab as the projector holds it.
    copy
        The slab as it is written and published.
    window
        The projections of a window, three times: as they arrived, laid out for the projector, and as a sinogram.
    work
        What the algorithm and the back end make of both.
    weights
        Of pixels and rays.
    history
        Projections that are kept for a new start.
    """

    volume: int
    copy: int
    window: int
    work: int
    weights: int
    history: int

    @property
    def total(self) -> int:
        """Their sum."""
        return sum(getattr(self, name) for name in self.__slots__)

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {getattr(self, name) / _GIB:.2f}" for name in self.__slots__)
        return f"{self.total / _GIB:.2f} GiB ({parts})"


def memory_needed(slices: int, task: Task) -> MemoryNeed:
    """Return what `slices` slices need, on the card for the back end cuda."""
    on_card, columns = task.backend == "cuda", task.columns
    lanes = choose_lanes(slices) if task.backend == "numba" and not task.axis_per_slice else 1
    padded, side, number = math.ceil(slices / lanes) * lanes, columns + _PADDING, _HALF if task.half else _FLOAT
    volume, sinogram = padded * side**2 * number, task.window * padded * side * number
    work = task.held + _OWN.get(task.backend, Held())
    used, kept = _WEIGHTS[task.backend]
    pixels = (used + kept * (1 + work.geometries)) * columns**2 * _FLOAT
    rays = 2 * task.window * columns * _RAY  # of the window, and of its parts together
    return MemoryNeed(
        volume=volume,
        copy=0 if on_card else task.copies * slices * columns**2 * _FLOAT,
        window=3 * sinogram,
        work=int(work.volumes * volume + work.sinograms * sinogram),
        weights=(pixels + rays) * (slices if task.axis_per_slice else 1),
        history=task.history,
    )


def memory_available(backend: Backend = "numba") -> int | None:
    """Return the bytes that may still be used: of the card, or by the machine and by the container (cgroup v2).

    None if that is unknown.
    """
    if backend == "cuda":
        from aps_mini_apps.sirt.projectors import cuda  # needs CuPy

        return cuda.memory_available()
    limits = [_machine_available(), _container_available()]
    return min((limit for limit in limits if limit is not None), default=None)


def check_memory(slices: int, task: Task) -> None:
    """Refuse a slab that does not fit.

    Raises
    ------
    ValueError
        With the sum that shows why, and the number of workers that would do.
    """
    available, need = memory_available(task.backend), memory_needed(slices, task)
    if available is None or need.total <= available:
        return
    columns = task.columns
    where = " on the GPU" if task.backend == "cuda" else ""
    refused = (
        f"{slices} slices of {columns} x {columns} pixels need {need}, and {available / _GIB:.2f} GiB are free{where}"
    )
    shares = (
        workers
        for workers in range(2, slices + 1)
        if memory_needed(math.ceil(slices / workers), task).total <= available
    )
    workers = next(shares, None)
    if workers is None:
        less = "fewer columns, a shorter window" + (" or less --history" if task.history else "")
        raise ValueError(f"{refused}: not even one slice fits; use {less}, or an algorithm that holds less")
    raise ValueError(f"{refused}: share the slices among {workers} or more workers, each with as much memory")


def _machine_available() -> int | None:
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:  # not Linux
        return None
    kibibytes = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return next((int(number) * 1024 for number in kibibytes), None)


def _container_available() -> int | None:
    try:
        limit, used, stat = (
            (_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current", "memory.stat")
        )
    except OSError:  # the root group, or cgroup v1
        return None
    if limit == "max":
        return None
    counts = dict(line.split() for line in stat.splitlines())
    cached = int(counts.get("active_file", 0)) + int(counts.get("inactive_file", 0))  # files' pages make room
    return max(0, int(limit) - int(used) + cached)
