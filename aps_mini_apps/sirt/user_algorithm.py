"""A user's own algorithm, which may be edited while the scan streams in.

The file is looked at before every window; what has been saved is taken at once, with the volume as it is. Each window
of it is a transaction: where the code fails, or returns what is no volume, the volume is put back to what it was before
that window, the traceback is logged, and the last version that has worked folds the window in. A refused version is not
tried again until the file changes.
"""

import hashlib
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from aps_mini_apps.sirt.algorithms import Algorithm, Held, ModuleAlgorithm, Progress, Window, load_algorithm, ones
from aps_mini_apps.sirt.projectors import Projector, make_projector
from ministream.base.errors import UserError
from ministream.base.log import get_logger

CLOCK_TICK = 2.0
"""Seconds. Two edits within one tick of a file system's clock may leave the same time: a young file is read again."""

SETTLED = 0.1
"""Seconds without a write, after which a file is taken to be whole: few editors replace it in one go."""

EMPTIED = 2.0
"""The same for an empty file: what follows the emptying may be long in coming, most of all over a network."""

DIGEST_LENGTH = 12

TRANSACTION = Held(volumes=2)
"""What is kept here: the volume before the window, and which of its values are pixels."""

_Sign = tuple[int, int, int]


def choose_algorithm(name: str, parameters: Mapping[str, Any] | None = None) -> Algorithm:
    """Return the algorithm called `name`: built in, a plug-in's, or a user's file where it ends in `.py`.

    Raises
    ------
    UserError
        If there is none, it cannot be loaded, or a parameter is wrong.
    """
    try:
        return UserAlgorithm(Path(name), parameters) if name.endswith(".py") else load_algorithm(name, parameters)
    except ValueError as error:
        raise UserError(str(error)) from error


class _Version:
    """One state of the file."""

    def __init__(self, path: Path, source: bytes, given: Mapping[str, Any]) -> None:
        self.digest = hashlib.sha256(source).hexdigest()[:DIGEST_LENGTH]
        # compiled here and not imported: Python's cache of bytecode takes two quick edits for one
        module = ModuleType(f"user_algorithm_{self.digest}")
        module.__file__ = str(path)
        sys.modules[module.__name__] = module  # where dataclasses look their annotations up
        exec(compile(source, str(path), "exec"), module.__dict__)  # noqa: S102 - it is the user's own, and meant to run
        self.algorithm = ModuleAlgorithm(path.name, module, given)


class UserAlgorithm:
    """The algorithm in the file `path`, in its newest version that works.

    Parameters
    ----------
    path
        A Python file with the shape of an algorithm: see docs/algorithms.md.
    given
        Settings that differ from the defaults in its `Parameters`.

    Raises
    ------
    UserError
        If the file cannot be read, or its first version does not work on a few made-up projections; its traceback is
        logged.
    """

    def __init__(self, path: Path, given: Mapping[str, Any] | None = None) -> None:
        self._path, self._given = path, given or {}
        self._log = get_logger()
        try:
            self._sign, source = _sign(path), path.read_bytes()
        except OSError as error:
            raise UserError(f"algorithm {path} cannot be read: {error.strerror}") from error
        self._read_at, self._source = time.time(), source
        try:
            first = _Version(path, source, self._given)
            _rehearse(first.algorithm)
        except (Exception, SystemExit) as error:
            self._log.exception("algorithm refused", file=str(path))
            raise UserError(f"algorithm {path} does not work: {type(error).__name__}: {error}") from error
        self._versions = [first]
        """The one in use, and before it the last one that has worked."""
        self._inside: Any = None
        self.failures = 0
        self._announced = ""

    def fold(self, window: Window, volume: Any, projector: Projector) -> tuple[Any, Progress]:
        """Return the volume after the window, by the newest version that can."""
        self._look(window.number)
        before = volume.copy()
        while self._versions:
            version = self._versions[-1]
            self._announce(version.digest, window.number)
            try:
                result, progress = version.algorithm.fold(window, volume, projector)
                _check(result, before)
            except (Exception, SystemExit):
                self._refuse(window.number, version.digest)
                self._versions.pop()
                volume[...] = before
                window.scratch.clear()
                if self._versions:
                    self._versions[-1].algorithm.restart()  # what it remembers may be half of a window
                continue
            self._versions = [version]
            return self._wipe_surroundings(result, projector), progress
        return volume, Progress(0.0, projector.misfit(*_residual(window, volume, projector)))

    def restart(self) -> None:
        """Forget what was remembered of earlier windows."""
        for version in self._versions:
            version.algorithm.restart()

    def held(self, projections: int) -> Held:
        """Return what is held at once beside volume and sinogram, by the version in use and to go back from it."""
        return self._versions[-1].algorithm.held(projections) + TRANSACTION

    def about(self) -> dict[str, str | int | float]:
        """Return the file, the version in use, the settings, and how often a version was refused."""
        refused = {"algorithm_refused": self.failures}
        if not self._versions:
            return {"algorithm": self._path.name, "algorithm_version": "none works", **refused}
        version = self._versions[-1]
        return {**version.algorithm.about(), "algorithm_version": version.digest, **refused}

    def _look(self, window: int) -> None:
        """Take a new version, if the file has one."""
        try:
            sign = _sign(self._path)
            if sign == self._sign and self._read_at - sign[0] / 1e9 > CLOCK_TICK:
                return
            if 0.0 <= time.time() - sign[0] / 1e9 < (SETTLED if sign[1] else EMPTIED):
                return
            read_at, source = time.time(), self._path.read_bytes()
            if _sign(self._path) != sign:  # a write has begun meanwhile: this may be half of it
                return
        except OSError:  # an editor is replacing it
            return
        self._sign, self._read_at = sign, read_at
        if source == self._source:
            return
        self._source = source
        try:
            version = _Version(self._path, source, self._given)
        except (Exception, SystemExit):
            self._refuse(window, hashlib.sha256(source).hexdigest()[:DIGEST_LENGTH])
            return
        self._versions.append(version)

    def _announce(self, digest: str, window: int) -> None:
        if digest != self._announced:
            self._announced = digest
            self._log.info("algorithm in use", file=str(self._path), version=digest, window=window)

    def _refuse(self, window: int, digest: str) -> None:
        self.failures += 1
        self._log.exception(
            "algorithm refused: the version before goes on", file=str(self._path), version=digest, window=window
        )

    def _wipe_surroundings(self, volume: Any, projector: Projector) -> Any:
        """Set to 0 what a back end keeps around the pixels: operators on whole arrays write there too."""
        if self._inside is None:
            self._inside = ones(projector)
        volume *= self._inside
        return volume


def _sign(path: Path) -> _Sign:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _check(result: Any, expected: Any) -> None:
    """Raise TypeError or ValueError unless `result` is a volume like `expected`, of finite numbers."""
    if type(result) is not type(expected):
        raise TypeError(f"update returned {type(result).__name__}, not a volume: end it with `return volume`")
    if result.shape != expected.shape or result.dtype != expected.dtype:
        raise ValueError(
            f"update returned {result.dtype} {result.shape}, not {expected.dtype} {expected.shape}: keep the volume's"
            " own layout, or go through projector.export_volume and import_volume"
        )
    if not math.isfinite(float(result.sum())):
        raise ValueError("update returned a volume with values that are not finite")


def _rehearse(algorithm: ModuleAlgorithm) -> None:
    """Fold a few projections of a disc into a small volume: what is misspelt shows before the scan."""
    columns, center, angles = 16, 8.0, np.linspace(0.0, math.pi, 8, endpoint=False)
    projector = make_projector("numpy", 2, columns)
    chord = 2.0 * np.sqrt(np.maximum(25.0 - (np.arange(columns) + 0.5 - center) ** 2, 0.0))
    measurements = [projector.measure(np.tile(chord, (2, 1)).astype(np.float32)) for _ in angles]
    window = Window(
        angles=angles,
        center=center,
        measurements=measurements,
        sinogram=projector.stack(measurements),
        geometry=projector.geometry(angles, center),
        fresh=len(angles),
    )
    volume = projector.new_volume()
    result, _ = algorithm.fold(window, volume, projector)
    _check(result, volume)
    algorithm.held(len(angles))
    algorithm.restart()


def _residual(window: Window, volume: Any, projector: Projector) -> tuple[Any, Any, Any]:
    return projector.residual(volume, window.sinogram, window.geometry), window.sinogram, window.geometry
