"""Time to quality: what each algorithm computes until its image is as good as SSIM 0.8 and 0.9.

The yardstick phantom, 512 columns and 360 projections over the half turn, in every slice of a slab; the whole scan is
one window. Counted are the seconds in `fold` (geometry and subsets included, the measurement of quality not) and the
projections that went forward and back: here less is better. Ratios say how many times sooner than plain SIRT in the
same run.
"""

import argparse
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numba
import numpy as np
from results import Result, record

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from aps_mini_apps.sirt.algorithms import Window, load_algorithm
from aps_mini_apps.sirt.projectors import Projector, make_projector
from tests.yardstick import phantom, quality, sinogram

COLUMNS, PROJECTIONS = 512, 360
LEVELS = (0.8, 0.9)
MOST_UPDATES = 150

CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("sirt", {}),
    ("sirt", {"nonnegative": True}),
    ("ossirt", {}),
    ("ossirt", {"nonnegative": False}),
    ("mlem", {}),
    ("osem", {}),
    ("cgls", {}),
    ("tv", {}),
    ("fbp", {}),
    ("fbp", {"filter": "hann"}),
)


@dataclass
class Course:
    """How one algorithm went: seconds and projections at which each level of SSIM was reached, and the best SSIM."""

    seconds: dict[float, float] = field(default_factory=dict)
    projections: dict[float, int] = field(default_factory=dict)
    best: float = 0.0


def follow(name: str, parameters: dict[str, Any], projector: Projector, measurements: list[Any]) -> Course:
    """Update until the last level is reached, or SSIM falls again, or `MOST_UPDATES` were made."""
    truth, angles = phantom(COLUMNS), np.arange(PROJECTIONS) * np.pi / PROJECTIONS
    algorithm, volume, course = load_algorithm(name, parameters), projector.new_volume(), Course()
    spent, since_best = 0.0, 0
    began = time.perf_counter()
    window = Window(
        angles=angles,
        center=COLUMNS / 2,
        measurements=measurements,
        sinogram=projector.stack(measurements),
        geometry=projector.geometry(angles, COLUMNS / 2),
        fresh=PROJECTIONS,
    )
    for update in range(1, 2 if name == "fbp" else MOST_UPDATES + 1):
        volume, _ = algorithm.fold(window, volume, projector)
        spent += time.perf_counter() - began
        _, ssim = quality(projector.export_volume(volume)[0], truth)
        since_best = 0 if ssim > course.best else since_best + 1
        course.best = max(course.best, ssim)
        for level in LEVELS:
            if ssim >= level and level not in course.seconds:
                course.seconds[level], course.projections[level] = spent, update * PROJECTIONS
        if LEVELS[-1] in course.seconds or since_best > 10:
            break
        began = time.perf_counter()
    return course


def main() -> None:
    """Measure, print a table, and keep it."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--slices", type=int, default=16)
    given, _ = options.parse_known_args()
    projector = make_projector("numba", given.slices, COLUMNS)
    projector.warm_up()
    exact = sinogram(COLUMNS, np.arange(PROJECTIONS) * np.pi / PROJECTIONS)
    measurements = [projector.measure(np.repeat(line[None], given.slices, axis=0)) for line in exact]
    size = f"{COLUMNS}x{PROJECTIONS}_{given.slices}"
    print(f"{COLUMNS} columns x {given.slices} slices x {PROJECTIONS} projections, {numba.get_num_threads()} threads")
    print(
        f"{'algorithm':<28}" + "".join(f"{f'SSIM {level}: s':>14}{'projections':>13}{'sooner':>8}" for level in LEVELS)
    )
    plain: Course | None = None
    results: list[Result] = []
    for name, parameters in CASES:
        course = follow(name, parameters, projector, measurements)
        plain = plain or course
        label = " ".join([name, *(f"{key}={value}" for key, value in parameters.items())])
        cells = [_cell(course, plain, level) for level in LEVELS]
        print(f"{label:<28}{''.join(cells)}   best {course.best:.3f}", flush=True)
        results += _results(f"{label.replace(' ', '_')}_{size}", course, plain)
    record(results)


def _cell(course: Course, plain: Course, level: float) -> str:
    if level not in course.seconds:
        return f"{'-':>14}{'-':>13}{'-':>8}"
    return f"{course.seconds[level]:14.2f}{course.projections[level]:13}{_sooner(course, plain, level):7.1f}x"


def _sooner(course: Course, plain: Course, level: float) -> float:
    """Return how many times sooner the level was reached than by plain SIRT; 0 where that never reached it."""
    return plain.seconds.get(level, 0.0) / course.seconds[level]


def _results(label: str, course: Course, plain: Course) -> list[Result]:
    results = []
    for level, seconds in course.seconds.items():
        sooner, projections = {"sirt": _sooner(course, plain, level)}, float(course.projections[level])
        results.append(Result(f"ssim_{level}_seconds_{label}", seconds, "s", sooner))
        fewer = {"sirt": plain.projections[level] / projections} if level in plain.projections else {}
        results.append(Result(f"ssim_{level}_projections_{label}", projections, "projections", fewer))
    return results


if __name__ == "__main__":
    main()
