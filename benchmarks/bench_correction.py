"""How fast frames become line integrals: the share of the machine's copy bandwidth, and NumPy's way for comparison.

`correct_2048x2048_u16` counts the bytes that a correction must read and write: 2 for the pixel, 4 each for the dark,
the scale and the line integral. A copy reads and writes 32 MiB, on as many threads. Its ratio to `copy` is therefore
the share of the copy bandwidth.
"""

import importlib.util
import os

import numba
import numpy as np
from results import Contestant, Result, compete, record

from aps_mini_apps.dist.correction import Correction

SIZE, LANES, ROUNDS = 2048, 16, 25
BYTES_PER_PIXEL = 2 + 4 + 4 + 4
GIGA = 1e9


def by_numpy(counts: np.ndarray, dark: np.ndarray, scale: np.ndarray, out: np.ndarray) -> None:
    """Correct pass by pass."""
    np.subtract(counts, dark, out=out)
    np.multiply(out, scale, out=out)
    np.log(out, out=out)
    np.negative(out, out=out)
    np.count_nonzero(~np.isfinite(out))


@numba.njit(parallel=True)
def copy(source, target):
    """Copy, row by row."""
    for row in numba.prange(len(source)):
        target[row] = source[row]


def main() -> None:
    """Measure, print and record."""
    numba.set_num_threads(os.cpu_count() or 1)
    random = np.random.default_rng(1)
    flat, dark = (random.integers(low, high, (SIZE, SIZE), np.uint16) for low, high in ((50000, 60000), (90, 110)))
    counts = random.integers(2000, 50000, (SIZE, SIZE), np.uint16)
    correction = Correction()
    correction.add_flat(flat)
    correction.add_dark(dark)
    light = (flat.astype(np.float32) - dark).astype(np.float32)
    constants = dark.astype(np.float32), 1 / light
    rows, again = (np.zeros((SIZE, SIZE), np.float32) for _ in range(2))
    window = np.zeros((SIZE // LANES, SIZE, LANES), np.float32)
    source, target = (np.ones((2 * SIZE, SIZE), np.float32) for _ in range(2))
    work = counts.size * BYTES_PER_PIXEL / GIGA
    ways = {
        "rows": Contestant(lambda: correction.line_integrals(counts, out=rows), work),
        "copy": Contestant(lambda: copy(source, target), 2 * source.nbytes / GIGA),
        "NumPy": Contestant(lambda: by_numpy(counts, *constants, again), work),
    }
    if importlib.util.find_spec("tomopy"):
        import tomopy

        ways["TomoPy"] = Contestant(
            lambda: tomopy.minus_log(tomopy.normalize(counts[None], flat[None], dark[None])), work
        )
    results = [compete("correct_2048x2048_u16", "GB/s", ways, ROUNDS)]
    layout = {"window": Contestant(lambda: correction.line_integrals(counts, out=window), work), "copy": ways["copy"]}
    results.append(compete("correct_2048x2048_u16_window", "GB/s", layout, ROUNDS))
    results.append(frames_per_second(results[0]))
    record(results)


def frames_per_second(corrected: Result) -> Result:
    """Return the same figure as people at a beamline ask for it."""
    return Result("correct_2048x2048_u16_frames", corrected.value * GIGA / (SIZE**2 * BYTES_PER_PIXEL), "frames/s")


if __name__ == "__main__":
    main()
