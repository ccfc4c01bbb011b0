"""Time to quality: what each algorithm computes until its image is as good as SSIM 0.8 and 0.9.

The yardstick phantom, 512 columns and 360 projections over the half turn, in every slice of a slab; the whole scan is
one window. Counted are the seconds in `fold` (geometry and subsets included, the measurement of quality not) and the
projections that went forward and back. Ratios are against plain SIRT in the same run.
"""

import argparse
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numba
import numpy as np

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
    """Measure, and print a table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--slices", type=int, default=16)
    options.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    given, _ = options.parse_known_args()
    numba.set_num_threads(min(given.threads, numba.config.NUMBA_NUM_THREADS))
    projector = make_projector("numba", given.slices, COLUMNS)
    projector.warm_up()
    exact = sinogram(COLUMNS, np.arange(PROJECTIONS) * np.pi / PROJECTIONS)
    measurements = [projector.measure(np.repeat(line[None], given.slices, axis=0)) for line in exact]
    print(f"{COLUMNS} columns x {given.slices} slices x {PROJECTIONS} projections, {given.threads} threads")
    print(f"{'algorithm':<32}" + "".join(f"{f'SSIM {level}':>30}" for level in LEVELS) + f"{'best':>8}")
    plain: Course | None = None
    for name, parameters in CASES:
        course = follow(name, parameters, projector, measurements)
        plain = plain or course
        label = " ".join([name, *(f"{key}={value}" for key, value in parameters.items())])
        cells = [_cell(course, plain, level) for level in LEVELS]
        print(f"{label:<32}{''.join(f'{cell:>30}' for cell in cells)}{course.best:8.3f}", flush=True)


def _cell(course: Course, plain: Course, level: float) -> str:
    if level not in course.seconds:
        return "-"
    ratio = f"{plain.seconds[level] / course.seconds[level]:.1f}x" if level in plain.seconds else ""
    return f"{course.seconds[level]:.2f} s {course.projections[level]:>7} {ratio:>7}"


if __name__ == "__main__":
    main()
