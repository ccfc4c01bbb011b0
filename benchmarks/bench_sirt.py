"""How fast SIRT is, in batch and in windows as they stream in, against its peers in the same rounds.

Batch is 30 iterations with set-up (2 for 1024 columns), in GUPS: 2 x columns^2 x angles x slices x iterations / seconds
/ 1e9. A stream is one update per window with all that depends on its angles, which never repeat, in projections per
second.
"""

import argparse
import importlib
import itertools
import sys
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from results import Contestant, Result, compete, record
from scipy import sparse

from aps_mini_apps.geometry import equal_angles
from aps_mini_apps.sirt.projectors import make_projector
from aps_mini_apps.sirt.projectors._vectors import load, store, vector_dtype

ITERATIONS = 30
GOLDEN_ANGLE = 2.399963229728653
FEW = 2
"""Iterations that a slow peer does; its rate counts."""
BATCH = [(columns, 360, slices) for columns in (512, 1024) for slices in (1, 2, 16, 32)]
STREAMS = [(columns, slices, w) for columns in (512, 1024) for slices in (1, 2, 16, 32) for w in (1, 4)] + [(640, 2, 4)]
STREAM_UPDATES = 24
CHAINS = 128  # numbers: eight of the widest vectors


def new_angles(counter: "itertools.count[int]", length: int) -> Any:
    """Return the angles of the next window, which never repeat."""
    return (next(counter) * length + np.arange(length)) * GOLDEN_ANGLE


def updates(columns: int, angles: int, slices: int, iterations: int) -> float:
    """Return the billions of pixel-ray updates of a reconstruction."""
    return 2.0 * columns**2 * angles * slices * iterations / 1e9


class Ours:
    """The project's projector: `backend` says which."""

    def __init__(self, columns: int, slices: int, backend: Any = "numba") -> None:
        self.projector, self.columns, self.slices = make_projector(backend, slices, columns), columns, slices

    def batch(self, angles: int, iterations: int) -> Contestant:
        """Reconstruct a whole scan."""
        projector = self.projector
        lines = np.ones((self.slices, self.columns), np.float32)
        sinogram = projector.stack([projector.measure(lines) for _ in range(angles)])
        volume = projector.new_volume()

        def run() -> None:
            volume[...] = 0.0
            geometry = projector.geometry(equal_angles(angles), self.columns / 2)
            for _ in range(iterations):
                projector.add_back(volume, projector.residual(volume, sinogram, geometry), geometry)

        return Contestant(run, updates(self.columns, angles, self.slices, iterations))

    def stream(self, length: int, windows: int = STREAM_UPDATES) -> Contestant:
        """Windows of `length` new projections, folded in as the product does it."""
        projector, counter = self.projector, itertools.count()
        held = [projector.measure(np.ones((self.slices, self.columns), np.float32)) for _ in range(length)]
        volume = projector.new_volume()

        def window() -> tuple[Any, Any]:
            return projector.stack(held), projector.geometry(new_angles(counter, length), self.columns / 2)

        def run() -> None:
            for _ in range(windows):
                sinogram, geometry = window()
                projector.add_back(volume, projector.residual(volume, sinogram, geometry), geometry)

        return Contestant(run, windows * length)


class Prototype:
    """The prototype in the folder `--prototype`: exact lengths, squared norms."""

    def __init__(self, columns: int, slices: int) -> None:
        self.module = importlib.import_module("proto3")
        self.solver = self.module.Sirt(columns, slices, "siddon", "l2")
        self.columns, self.slices = columns, slices

    def batch(self, angles: int, iterations: int) -> Contestant:
        """Reconstruct a whole scan."""
        cos, sin = self.module.geom(equal_angles(angles))
        sinogram = np.ones(angles * self.columns * self.slices, np.float32)
        buffers = self.solver.alloc(angles)

        def run() -> None:
            self.solver.rec[:] = 0.0
            for iteration in range(iterations):
                self.solver.step(sinogram, cos, sin, buffers, prep=iteration == 0)

        return Contestant(run, updates(self.columns, angles, self.slices, iterations))

    def stream(self, length: int) -> Contestant:
        """Fold windows of `length` new projections in."""
        counter, buffers = itertools.count(), self.solver.alloc(length)
        sinogram = np.ones(length * self.columns * self.slices, np.float32)

        def run() -> None:
            for _ in range(STREAM_UPDATES):
                cos, sin = self.module.geom(new_angles(counter, length))
                self.solver.step(sinogram, cos, sin, buffers)

        return Contestant(run, STREAM_UPDATES * length)


def astra_line(columns: int, angles: int) -> Contestant:
    """ASTRA's CPU SIRT with its line projector: one thread, one slice."""
    import astra

    volume = astra.create_vol_geom(columns, columns)
    rays = astra.create_proj_geom("parallel", 1.0, columns, equal_angles(angles))
    projector = astra.create_projector("line", rays, volume)
    sinogram = astra.data2d.create("-sino", rays, 1.0)
    image = astra.data2d.create("-vol", volume, 0.0)
    settings = astra.astra_dict("SIRT")
    settings |= {"ProjectorId": projector, "ProjectionDataId": sinogram, "ReconstructionDataId": image}
    algorithm = astra.algorithm.create(settings)
    return Contestant(lambda: astra.algorithm.run(algorithm, FEW), updates(columns, angles, 1, FEW))


def astra_windows(columns: int, slices: int, length: int) -> Contestant:
    """ASTRA's CPU SIRT with its line projector on windows of new angles: one thread, one slice of `slices`."""
    import astra

    grid, counter = astra.create_vol_geom(columns, columns), itertools.count()
    image, lines = astra.data2d.create("-vol", grid, 0.0), np.ones((length, columns), np.float32)

    def run() -> None:
        for _ in range(FEW):
            rays = astra.create_proj_geom("parallel", 1.0, columns, new_angles(counter, length))
            projector = astra.create_projector("line", rays, grid)
            sinogram = astra.data2d.create("-sino", rays, lines)
            settings = astra.astra_dict("SIRT")
            settings |= {"ProjectorId": projector, "ProjectionDataId": sinogram, "ReconstructionDataId": image}
            algorithm = astra.algorithm.create(settings)
            astra.algorithm.run(algorithm, 1)
            astra.algorithm.delete(algorithm)
            astra.data2d.delete(sinogram)
            astra.projector.delete(projector)

    return Contestant(run, FEW * length / slices)


def scipy_windows(columns: int, slices: int, length: int) -> Contestant:
    """SciPy's sparse matrix on windows of new angles, made for each of them."""
    counter, images = itertools.count(), np.zeros((columns**2, slices), np.float32)
    measured = np.ones((length * columns, slices), np.float32)

    def run() -> None:
        matrix = csr_matrix(columns, new_angles(counter, length))
        images[...] += np.float32(1e-3) * (matrix.T @ (measured - matrix @ images))

    return Contestant(run, length)


def scipy_csr(columns: int, angles: int, slices: int) -> Contestant:
    """SciPy's sparse matrix, held for the forward and the back projection; making it does not count."""
    forward = csr_matrix(columns, equal_angles(angles))
    back = forward.T.tocsr()
    rays, pixels = forward.shape
    images, measured = np.zeros((pixels, slices), np.float32), np.ones((rays, slices), np.float32)

    def run() -> None:
        images[...] += np.float32(1e-3) * (back @ (measured - forward @ images))

    return Contestant(run, updates(columns, angles, slices, 1))


def csr_matrix(columns: int, angles: Any) -> Any:
    """Return the projections at `angles` as a sparse matrix, each pixel shared between its two nearest rays."""
    axis = np.arange(columns) - (columns - 1) / 2
    rows, weights = [], []
    for index, angle in enumerate(angles):
        position = axis[None] * np.cos(angle) - axis[:, None] * np.sin(angle) + (columns - 1) / 2
        below = np.floor(position).astype(np.int32)
        for ray in (below, below + 1):
            rows.append(np.clip(ray, 0, columns - 1).ravel() + index * columns)
            weights.append(((1 - abs(position - ray)) * ((ray >= 0) & (ray < columns))).astype(np.float32).ravel())
    pixels = np.tile(np.arange(columns**2, dtype=np.int32), 2 * len(angles))
    shape = (len(angles) * columns, columns**2)
    return sparse.csr_matrix((np.concatenate(weights), (np.concatenate(rows), pixels)), shape=shape)


def skimage_sart(columns: int, angles: int) -> Contestant:
    """One sweep of scikit-image's SART, one slice."""
    from skimage.transform import iradon_sart

    sinogram, degrees = np.ones((columns, angles)), np.rad2deg(equal_angles(angles))
    return Contestant(lambda: iradon_sart(sinogram, degrees), updates(columns, angles, 1, 1))


@numba.njit(parallel=True, error_model="numpy")
def _multiply_add(numbers: Any, factor: Any, times: int) -> None:
    """Run chains of multiply and add on each thread, as many as a core can have under way."""
    for thread in numba.prange(len(numbers)):
        sums = load(numbers, thread * CHAINS)
        for _ in range(times):
            sums = factor * sums + factor
        store(numbers, thread * CHAINS, sums)


@numba.njit(parallel=True)
def _copy(source: Any, target: Any) -> None:
    for k in numba.prange(len(source)):
        target[k] = source[k]


def multiply_add(threads: int, times: int = 2_000_000) -> Contestant:
    """Multiply and add in registers alone, in as many jobs as there are threads."""
    numbers = np.ones((threads, CHAINS), np.float32).view(vector_dtype(CHAINS))[:, 0]
    return Contestant(lambda: _multiply_add(numbers, np.float32(0.5), times), threads * times * CHAINS * 2 / 1e9)


def limits(rounds: int) -> tuple[Result, Result]:
    """Measure what the machine can do: GFLOP/s of multiply and add, and GB/s of a copy (read and written)."""
    threads = numba.get_num_threads()
    source = np.ones(1 << 26, np.float32)
    target = np.zeros_like(source)
    return (
        compete(f"fma_peak_{threads}", "GFLOP/s", {"": multiply_add(threads)}, rounds),
        compete(
            f"copy_bandwidth_{threads}",
            "GB/s",
            {"": Contestant(lambda: _copy(source, target), 2 * source.nbytes / 1e9)},
            rounds,
        ),
    )


def batch(columns: int, angles: int, slices: int, rounds: int, prototype: bool, peers: bool) -> Result:
    """Compare batch SIRT: all peers at 512 columns and 16 slices, where the others take minutes otherwise."""
    iterations = ITERATIONS if columns == 512 else FEW  # they take four times as long
    contestants = {"ours": Ours(columns, slices).batch(angles, iterations)}
    if prototype:
        contestants["prototype"] = Prototype(columns, slices).batch(angles, iterations)
    if peers:
        contestants["astra line"] = astra_line(columns, angles)
        contestants["scipy csr"] = scipy_csr(columns, angles, slices)
        contestants["scikit-image sart"] = skimage_sart(columns, angles)
        contestants["numpy reference"] = Ours(columns, 1, "numpy").batch(4, 1)
    return compete(f"sirt_batch_{columns}x{angles}_{slices}", "GUPS", contestants, rounds)


def stream(columns: int, slices: int, length: int, rounds: int, prototype: bool, peers: bool) -> Result:
    """Compare windows of `length` projections, each of them new: all peers at 512 columns, 16 slices and 4 of them."""
    contestants = {"ours": Ours(columns, slices).stream(length)}
    if prototype:
        contestants["prototype"] = Prototype(columns, slices).stream(length)
    if peers:
        contestants["astra line"] = astra_windows(columns, slices, length)
        contestants["scipy csr"] = scipy_windows(columns, slices, length)
        alone = Ours(columns, 1, "numpy").stream(length, windows=1)
        contestants["numpy reference"] = Contestant(alone.run, alone.work / slices)
    return compete(f"sirt_stream_{columns}_{slices}_w{length}", "projections/s", contestants, rounds)


def on_one_thread(run: Callable[[], object]) -> Callable[[], None]:
    """Return `run` confined to one thread."""

    def alone() -> None:
        threads = numba.get_num_threads()
        numba.set_num_threads(1)
        try:
            run()
        finally:
            numba.set_num_threads(threads)

    return alone


def scaling(rounds: int) -> list[Result]:
    """Compare a batch on all threads with the same on one; and, as the most there is to have, multiply and add."""
    threads = numba.get_num_threads()
    batch, limit = Ours(512, 16).batch(360, 5), multiply_add(threads, 100_000_000)  # of the same length
    return [
        compete(name, unit, {"": all_, "one thread": Contestant(on_one_thread(all_.run), all_.work)}, rounds)
        for name, unit, all_ in (
            (f"sirt_batch_scaling_{threads}", "GUPS", batch),
            (f"fma_scaling_{threads}", "GFLOP/s", limit),
        )
    ]


def share(part: Result, whole: Result, per_unit: float, name: str) -> Result:
    """Return which fraction of what the machine can do `part` reaches."""
    return Result(name, part.value * per_unit / whole.value, "fraction of the limit")


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prototype", metavar="DIR", help="folder of the prototype, a peer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="names that contain this")
    arguments = parser.parse_args()
    if arguments.prototype:
        sys.path.insert(0, arguments.prototype)
    rounds, prototype, only = arguments.rounds, bool(arguments.prototype), arguments.only
    results = list(limits(rounds))
    for columns, angles, slices in BATCH:
        if only in f"sirt_batch_{columns}x{angles}_{slices}":
            results.append(batch(columns, angles, slices, rounds, prototype, peers=(columns, slices) == (512, 16)))
            record(results)  # each takes minutes
    for columns, slices, length in STREAMS:
        if only in f"sirt_stream_{columns}_{slices}_w{length}":
            all_peers = (columns, slices, length) == (512, 16, 4)
            results.append(stream(columns, slices, length, rounds, prototype, peers=all_peers))
    if only in "sirt_batch_scaling":
        results += scaling(rounds)
    fast = {result.name: result for result in results}
    if chosen := fast.get("sirt_batch_512x360_16"):
        results.append(share(chosen, results[0], 4.0, "sirt_batch_512x360_16_of_fma_peak"))  # two taps: 4 operations
    if chosen := fast.get("sirt_stream_512_16_w1"):
        traffic = 2 * 512**2 * 16 * 4 / 1e9  # the volume, read and written
        results.append(share(chosen, results[1], traffic, "sirt_stream_512_16_w1_of_bandwidth"))
    record(results)


if __name__ == "__main__":
    main()
