"""A slab's reconstruction: projections in, one update of the volume per window out. No sockets, no files.

Projections are laid out for the projector once, when they arrive. The rotation axis is given, taken from the
stream (the newest projection's, as the APS worker does), or found: then the projections seen so far are kept,
the axis is estimated as soon as a pair near 180 degrees apart is in, and the reconstruction starts again from
them, so that its result is that of a run which knew the axis from the start.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from aps_mini_apps.frames import Frame
from aps_mini_apps.geometry import check_center
from aps_mini_apps.sirt import axis
from aps_mini_apps.sirt.algorithms import Algorithm, Window, load_algorithm
from aps_mini_apps.sirt.projectors import Projector
from aps_mini_apps.sirt.window import windows

AXIS_STEP = 0.25
"""Columns: an estimate that differs by less from the axis in use is not worth a new start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What one window did.

    Attributes
    ----------
    window
        Its number, from 0; it goes on counting over a new start.
    projections
        How many projections were in it.
    newest
        Frame number of the newest of them.
    center
        Rotation axis that was used, columns; of one that leans, its mean over the slices.
    change
        Root mean square change of a voxel in the last update, 1/pixel.
    misfit
        ||b - A x|| / ||b|| over the window's projections: see `algorithms.Progress`.
    """

    window: int
    projections: int
    newest: int
    center: float
    change: float
    misfit: float


@dataclass(frozen=True, slots=True)
class _Held:
    frame: Frame
    measured: Any
    """The projection in the projector's layout."""


@dataclass
class AxisSearch:
    """Finds the rotation axis of a scan while it streams in.

    Attributes
    ----------
    history_bytes
        How much of the scan is kept for the new start, as it came and laid out for the projector; beyond it the
        oldest projections are forgotten.
    announce
        Called with (axis, projections held) when an estimate makes the reconstruction start again.
    """

    history_bytes: int
    announce: Callable[[float, int], None]
    history: list[_Held] = field(default_factory=list)

    def keep(self, held: _Held) -> None:
        """Remember one projection, within the limit."""
        self.history.append(held)
        size = held.frame.pixels.nbytes + held.measured.nbytes
        del self.history[: max(0, len(self.history) - max(2, self.history_bytes // size))]

    def estimate(self) -> float | None:
        """Return the axis by the first pair of projections near 180 degrees apart; None while there is none."""
        frames = [held.frame for held in self.history]
        angles = np.array([frame.angle for frame in frames])
        pair = axis.find_pair(angles)
        if pair is None:
            return None
        first, opposite = (np.asarray(frames[index].pixels, np.float32) for index in pair)
        middle = first.shape[0] // 2
        sinogram = np.stack([frame.pixels[middle] for frame in frames])
        return axis.refine(sinogram, angles, axis.from_pair(first, opposite))


class Reconstruction:
    """The volume of one slab, and the windows that were folded into it.

    Parameters
    ----------
    projector
        Back end for the slab's slices and columns.
    length, step, iterations
        Window length and step in projections, updates per window.
    center
        Rotation axis in columns, or that of each slice (for a projector with an axis per slice); None takes it from
        each window's newest projection, or the middle.
    search
        Look for the axis; `center` is then where the search starts from.
    algorithm
        What folds a window in; SIRT unless given.

    Raises
    ------
    ValueError
        If `iterations` is less than 1, or the axis lies outside the detector.
    """

    def __init__(
        self,
        projector: Projector,
        *,
        length: int,
        step: int = 1,
        iterations: int = 1,
        center: float | npt.NDArray[np.float64] | None = None,
        search: AxisSearch | None = None,
        algorithm: Algorithm | None = None,
    ) -> None:
        if iterations < 1:
            raise ValueError(f"{iterations} iterations would change nothing: use 1 or more")
        for given in np.atleast_1d([] if center is None else center).tolist():
            check_center(given, projector.columns)
        self.projector = projector
        self.length, self.step, self.iterations = length, step, iterations
        self._center = center
        self._search = search
        self._algorithm = algorithm or load_algorithm()
        self._volume = projector.new_volume()
        self._count = 0
        self._newest: _Held | None = None
        self._previous = 0
        self.seen: list[float] = []

    def run(self, frames: Iterable[Frame]) -> Iterator[Update]:
        """Fold `frames` in, window by window; every update is yielded when it is done."""
        arrivals = (self._arrive(frame) for frame in frames)
        again: list[_Held] = []  # projections to begin with, after the axis was found
        while True:
            for held in windows(chain(again, arrivals), self.length, self.step):
                yield self._fold(held)
                if again := self._axis_moved():
                    break
            else:
                return

    @property
    def searching(self) -> bool:
        """The axis is to be found, and no pair of projections has come yet (or the history was too short for one)."""
        return self._search is not None

    def volume(self) -> npt.NDArray[np.float32]:
        """Return a copy of the volume: (slices, rows, columns), attenuation per pixel."""
        return self.projector.export_volume(self._volume)

    def _arrive(self, frame: Frame) -> _Held:
        held = _Held(frame, self.projector.measure(np.asarray(frame.pixels, np.float32)))
        self.seen.append(frame.angle)
        if self._search is not None:
            self._search.keep(held)
        return held

    def _fold(self, held: tuple[_Held, ...]) -> Update:
        window = self._window(held)
        self._volume, progress = self._algorithm.fold(window, self._volume, self.projector)
        voxels = self.projector.slices * self.projector.columns**2
        update = Update(
            window=self._count,
            projections=len(held),
            newest=held[-1].frame.number,
            center=float(np.mean(window.center)),
            change=progress.change / voxels**0.5,
            misfit=progress.misfit,
        )
        self._count += 1
        self._newest, self._previous = held[-1], self._previous + window.fresh
        return update

    def _window(self, held: tuple[_Held, ...]) -> Window:
        angles, center = np.array([h.frame.angle for h in held]), self._axis_for(held[-1].frame)
        measurements = [h.measured for h in held]
        known = next((age for age, h in enumerate(reversed(held)) if h is self._newest), len(held))
        return Window(
            number=self._count,
            angles=angles,
            center=center,
            measurements=measurements,
            sinogram=self.projector.stack(measurements),
            geometry=self.projector.geometry(angles, center),
            fresh=known,
            previous=self._previous,
            iterations=self.iterations,
        )

    def _axis_for(self, newest: Frame) -> float | npt.NDArray[np.float64]:
        if self._center is not None:
            return self._center
        columns = self.projector.columns
        return columns / 2 if newest.center is None else check_center(newest.center, columns)

    def _axis_moved(self) -> list[_Held]:
        """Once a pair is in, end the search; return the projections to start from if the axis lies elsewhere."""
        if self._search is None:
            return []
        found = self._search.estimate()
        if found is None:
            return []
        search, self._search = self._search, None
        used = self._axis_for(search.history[-1].frame)
        if np.abs(found - used).max() < AXIS_STEP:
            return []
        self._center = check_center(found, self.projector.columns)
        self._volume = self.projector.new_volume()
        self._algorithm.restart()
        self._newest, self._previous = None, 0
        search.announce(found, len(search.history))
        return search.history
