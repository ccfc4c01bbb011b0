"""The one shape of an algorithm: what it is given, what it returns, and how far it has come.

An algorithm is a module with a function `update(window, volume, projector, parameters)`, which returns the improved
volume, and, if it has settings, a dataclass `Parameters` with their defaults. Built-in ones, plug-ins and a user's file
all have this shape. `update` is called `iterations` times per window. A module may also have a function
`held(parameters, projections)`, which tells what it holds beside volume and sinogram, for windows of so many
projections: by it a slab that would not fit in memory is refused.
"""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from types import ModuleType
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

from aps_mini_apps.sirt.projectors import Projector
from aps_mini_apps.sirt.projectors.memory import Held

GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
"""Steps of this share of a circle never come near the places that were visited just before."""

FEWEST = 8
"""Projections of a subset: a step that fits fewer of them fits their noise, too."""

UNTOLD = Held(volumes=1, sinograms=2)
"""What a module is taken to hold that does not say: what plain SIRT does, and something of its own."""


def count_subsets(wanted: int, projections: int) -> int:
    """Return how many subsets so many projections make: `wanted`, or fewer, so that each holds `FEWEST`."""
    return max(1, min(wanted, projections // FEWEST))


def ones(projector: Projector) -> Any:
    """Return a volume of ones; 0 around the image."""
    shape = (projector.slices, projector.columns, projector.columns)
    return projector.import_volume(np.broadcast_to(np.float32(1.0), shape))


@dataclass(eq=False, kw_only=True)
class Window:
    """The projections that are reconstructed together.

    Attributes
    ----------
    number
        From 0; it goes on counting when the reconstruction starts again.
    angles
        (projections,) radians, in order of arrival: the newest is the last.
    center
        Rotation axis, columns; one for each slice where it leans.
    measurements
        The projections, each as `projector.measure` laid it out.
    sinogram, geometry
        All of them together, as `projector` takes them.
    fresh
        How many of them, at the end, no window has had before; 0 while the last windows of a scan run empty.
    previous
        Projections of the scan that earlier windows had.
    iterations, iteration
        Updates per window, and which of them this one is, from 0.
    scratch
        The algorithm's own, for the updates of this window.
    memory
        The algorithm's own, for the whole reconstruction; emptied when it starts again or its code changes.
    """

    angles: npt.NDArray[np.float64]
    center: float | npt.NDArray[np.float64]
    measurements: Sequence[Any]
    sinogram: Any
    geometry: Any
    number: int = 0
    fresh: int = 0
    previous: int = 0
    iterations: int = 1
    iteration: int = 0
    scratch: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)

    def subsets(self, projector: Projector, count: int) -> "list[Window]":
        """Return `count` windows with every `count`-th projection each; fewer, so that each holds `FEWEST`.

        They come in an order in which neighbours see the sample from angles far apart, and are made once per window.
        """
        count = count_subsets(count, len(self.angles))
        if count == 1:
            return [self]
        order = sorted(range(count), key=lambda k: k * GOLDEN % 1.0)
        key = f"subsets {count}"
        if key not in self.scratch:
            self.scratch[key] = [self._subset(projector, slice(k, None, count)) for k in order]
        return cast("list[Window]", self.scratch[key])

    def _subset(self, projector: Projector, part: slice) -> "Window":
        measurements, angles = self.measurements[part], self.angles[part]
        return replace(
            self,
            angles=angles,
            measurements=measurements,
            sinogram=projector.stack(measurements),
            geometry=projector.geometry(angles, self.center),
            scratch={},
        )


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a reconstruction has come.

    Attributes
    ----------
    change
        Euclidean norm of the last update's change of the volume.
    misfit
        ||b - A x|| / ||b|| before the last update; after it for an algorithm that asks for no residual.
    """

    change: float
    misfit: float


class Algorithm(Protocol):
    """What folds windows into a volume."""

    def fold(self, window: Window, volume: Any, projector: Projector) -> tuple[Any, Progress]:
        """Return the volume, which may be the same array, after `window.iterations` updates."""

    def restart(self) -> None:
        """Forget what was remembered of earlier windows."""

    def held(self, projections: int) -> Held:
        """Return what is held at once beside volume and sinogram, for windows of so many projections."""

    def about(self) -> dict[str, str | int | float]:
        """Return what an output file says of it: its name and its settings."""


Update = Callable[[Window, Any, Projector, Any], Any]


class ModuleAlgorithm:
    """The algorithm that a module describes.

    Parameters
    ----------
    name
        What it is called.
    module
        With `update` and, if it has settings, `Parameters`.
    given
        Settings that differ from their defaults; text is converted.

    Raises
    ------
    ValueError
        If the module has not the shape of an algorithm, or a setting does not exist or is out of its range.
    """

    def __init__(self, name: str, module: ModuleType, given: Mapping[str, Any] | None = None) -> None:
        self.name = name
        update = getattr(module, "update", None)
        if not callable(update):
            raise ValueError(f"{name} has no function update(window, volume, projector, parameters)")
        self._update: Update = update
        self._held = getattr(module, "held", None)
        self.parameters = _make_parameters(name, getattr(module, "Parameters", None), given or {})
        self._memory: dict[str, Any] = {}
        self._tells_change = True
        """The last update changed the volume by `add_back`, which returns by how much."""

    def fold(self, window: Window, volume: Any, projector: Projector) -> tuple[Any, Progress]:
        """Return the volume after `window.iterations` updates."""
        window.memory, recorder, before = self._memory, _Recorder(projector), None
        update = self._updater(projector)
        for iteration in range(window.iterations):
            window.iteration = iteration
            if iteration == window.iterations - 1 and not self._tells_change:
                before = volume.copy()
            recorder.clear()
            volume = update(window, volume, cast("Projector", recorder), self.parameters)
            self._tells_change = recorder.added
        if recorder.added:
            squares = recorder.squares
        elif before is None:  # the first update of all begins from nothing
            squares = float((volume * volume).sum())
        else:
            before -= volume  # in place: this is when most is held
            before *= before
            squares = float(before.sum())
        return volume, Progress(math.sqrt(squares), recorder.misfit_of(window, volume))

    def _updater(self, projector: Projector) -> Update:
        """Return what updates: a back end's own code for this algorithm, where it has any, in place of the module's."""
        own = getattr(projector, "update", None)
        return self._update if own is None else lambda *state: own(self.name, *state)

    def restart(self) -> None:
        """Forget what was remembered of earlier windows."""
        self._memory.clear()

    def held(self, projections: int) -> Held:
        """Return what is held at once beside volume and sinogram."""
        if self._held is None:
            return UNTOLD
        held = self._held(self.parameters, projections)
        if not isinstance(held, Held):
            raise ValueError(f"{self.name}: held returned {type(held).__name__}, not algorithms.Held")
        return held

    def about(self) -> dict[str, str | int | float]:
        """Return the name and the settings."""
        settings = {} if self.parameters is None else vars(self.parameters)
        return {"algorithm": self.name, **{f"parameter_{name}": value for name, value in settings.items()}}


class _Recorder:
    """A projector that notes what is asked of it, so that change and misfit come at no cost of their own."""

    def __init__(self, projector: Projector) -> None:
        self._projector = projector
        self.clear()

    def clear(self) -> None:
        self._residuals: list[tuple[Any, Any, Any]] = []
        self.added, self.squares = False, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._projector, name)

    def residual(self, volume: Any, sinogram: Any, geometry: Any) -> Any:
        residual = self._projector.residual(volume, sinogram, geometry)
        self._residuals.append((residual, sinogram, geometry))
        return residual

    def add_back(self, volume: Any, residual: Any, geometry: Any, relaxation: float = 1.0) -> float:
        squares = self._projector.add_back(volume, residual, geometry, relaxation)
        self.added, self.squares = True, self.squares + squares
        return squares

    def misfit_of(self, window: Window, volume: Any) -> float:
        """Return the root mean square of the misfits met in the last update; of `volume` where none was."""
        if not self._residuals:
            self.residual(volume, window.sinogram, window.geometry)
        misfits = [self._projector.misfit(*noted) for noted in self._residuals]
        return misfits[0] if len(misfits) == 1 else math.sqrt(sum(misfit**2 for misfit in misfits) / len(misfits))


def _make_parameters(name: str, model: Any, given: Mapping[str, Any]) -> Any:
    """Return an instance of the dataclass `model` made from `given`; None for an algorithm without settings."""
    if model is not None and not is_dataclass(model):
        raise ValueError(f"{name}: Parameters is no dataclass; write @dataclass above it")
    known = [] if model is None else [f.name for f in fields(model)]
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}" if known else "it has none"
            raise ValueError(f"algorithm {name} has no parameter {key!r}; {hint}")
    if model is None:
        return None
    try:
        return TypeAdapter(model).validate_python(dict(given))
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, p['loc']))}: {p['msg']} (given: {p['input']!r})" for p in error.errors())
        raise ValueError(f"algorithm {name}, parameter {'; '.join(problems)}") from error
