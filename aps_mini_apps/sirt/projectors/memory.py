"""What a slab needs of the memory, and whether that is there: asked before anything is allocated."""

import math
from dataclasses import dataclass
from pathlib import Path

from aps_mini_apps.sirt.projectors._layout import choose_lanes

_FLOAT = 4
_GIB = 2**30
_PADDING = 3
"""Pixels and bins that a projector adds to rows and columns, about."""
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


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
        The projections of a window, three times: as they arrived, as a sinogram, and the residual.
    weights
        Of the pixels.
    """

    volume: int
    copy: int
    window: int
    weights: int

    @property
    def total(self) -> int:
        """Their sum."""
        return self.volume + self.copy + self.window + self.weights

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {getattr(self, name) / _GIB:.2f}" for name in self.__slots__)
        return f"{self.total / _GIB:.2f} GiB ({parts})"


def memory_needed(slices: int, columns: int, window: int) -> MemoryNeed:
    """Return what `slices` slices of `columns` x `columns` pixels need, with `window` projections at a time."""
    lanes = choose_lanes(slices)
    padded = math.ceil(slices / lanes) * lanes
    side = columns + _PADDING
    return MemoryNeed(
        volume=padded * side**2 * _FLOAT,
        copy=slices * columns**2 * _FLOAT,
        window=3 * window * padded * side * _FLOAT,
        weights=columns**2 * _FLOAT,
    )


def memory_available() -> int | None:
    """Return the bytes that may still be used, by the machine and by the container (cgroup v2); None if unknown."""
    limits = [_machine_available(), _container_available()]
    return min((limit for limit in limits if limit is not None), default=None)


def check_memory(slices: int, columns: int, window: int) -> None:
    """Refuse a slab that does not fit.

    Raises
    ------
    ValueError
        With the sum that shows why, and the number of workers that would do.
    """
    available, need = memory_available(), memory_needed(slices, columns, window)
    if available is None or need.total <= available:
        return
    refused = f"{slices} slices of {columns} x {columns} pixels need {need}, and {available / _GIB:.2f} GiB are free"
    shares = (
        workers
        for workers in range(2, slices + 1)
        if memory_needed(math.ceil(slices / workers), columns, window).total <= available
    )
    workers = next(shares, None)
    if workers is None:
        raise ValueError(f"{refused}: not even one slice fits; use fewer columns or a shorter window")
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
