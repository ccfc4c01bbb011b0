"""Both projectors against geometry: lengths found by clipping rays, not by the formula that the projectors use."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aps_mini_apps.sirt.projectors import _kernels, _rays, _single, make_projector
from aps_mini_apps.sirt.projectors._footprint import footprints
from tests.folding import sirt

BACKENDS = ("numpy", "numba")
MODELS = ("exact", "joseph")
ANGLES = np.concatenate([np.arange(-4, 9) * np.pi / 4, [0.3, 1.1, -0.7, 2.9, 4.0, 5.5, -9.2, 1e-3, np.pi / 2 + 1e-4]])


def chord(middle, s, theta):
    """Length of the ray `s` at `theta` within the unit square around `middle` (x, y), by clipping the ray."""
    point = np.array([s * np.cos(theta), -s * np.sin(theta)])
    direction = np.array([np.sin(theta), np.cos(theta)])
    enter, leave = -np.inf, np.inf
    for axis in range(2):
        borders = middle[axis] + np.array([-0.5, 0.5]) - point[axis]
        if abs(direction[axis]) < 1e-12:
            if not borders[0] < 0 < borders[1]:
                return 0.0
            continue
        near, far = sorted(borders / direction[axis])
        enter, leave = max(enter, near), min(leave, far)
    return max(0.0, leave - enter)


def exact_row(columns, s, theta):
    offset = np.arange(columns) - (columns - 1) / 2
    return np.array([[chord((x, y), s, theta) for x in offset] for y in offset])


def joseph_row(columns, s, theta):
    """Walk along the ray's main direction, and interpolate between the two nearest pixels at every step."""
    cos, sin = np.cos(theta), np.sin(theta)
    offset = np.arange(columns) - (columns - 1) / 2
    row = np.zeros((columns, columns))
    by_rows = abs(cos) >= abs(sin)
    for step in range(columns):
        crossing = (s + offset[step] * sin) / cos if by_rows else (offset[step] * cos - s) / sin
        weights = np.maximum(0.0, 1.0 - np.abs(offset - crossing)) / max(abs(cos), abs(sin))
        row[(step, slice(None)) if by_rows else (slice(None), step)] = weights
    return row


def dense(columns, angles, center, model):
    """Return the system matrix (angles, columns, pixels)."""
    row = exact_row if model == "exact" else joseph_row
    return np.array([[row(columns, c + 0.5 - center, theta).ravel() for c in range(columns)] for theta in angles])


def project(projector, data, angles, center):
    geometry = projector.geometry(angles, center)
    return projector.export_sinogram(projector.forward(projector.import_volume(data), geometry))


def import_sinogram(projector, data):
    """Return `data` (angles, slices, columns) as a sinogram."""
    return projector.stack([projector.measure(projection) for projection in data])


@pytest.mark.parametrize(("backend", "alone"), [("numpy", False), ("numba", False), ("numba", True)])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("columns", "center"), [(8, 4.0), (7, 3.5), (8, 3.17), (7, 0.29), (8, 7.8)])
class TestMatrix:
    """The images are projected together, or each `alone`: single slices have loops of their own."""

    def test_forward_is_the_dense_matrix(self, backend, alone, model, columns, center):
        pixels = np.eye(columns**2, dtype=np.float32).reshape(-1, columns, columns)  # one to each slice
        slices = 1 if alone else len(pixels)
        projector = make_projector(backend, slices, columns, model=model)
        parts = [project(projector, pixels[k : k + slices], ANGLES, center) for k in range(0, len(pixels), slices)]
        matrix = np.concatenate(parts, axis=1).transpose(0, 2, 1)
        np.testing.assert_allclose(matrix, dense(columns, ANGLES, center, model), atol=2e-4)

    def test_back_is_its_transpose(self, backend, alone, model, columns, center):
        angles = ANGLES[::4]
        bins = np.eye(len(angles) * columns, dtype=np.float32).reshape(-1, len(angles), columns).swapaxes(0, 1)
        slices = 1 if alone else bins.shape[1]
        projector = make_projector(backend, slices, columns, model=model)
        geometry = projector.geometry(angles, center)
        sinograms = [import_sinogram(projector, bins[:, k : k + slices]) for k in range(0, bins.shape[1], slices)]
        volumes = [projector.export_volume(projector.back(sinogram, geometry)) for sinogram in sinograms]
        matrix = np.concatenate(volumes).reshape(len(angles), columns, -1)
        np.testing.assert_allclose(matrix, dense(columns, angles, center, model), atol=2e-4)


@given(angle=st.floats(-10, 10), fraction=st.floats(0, 1), model=st.sampled_from(MODELS))
def test_at_every_step_the_lengths_in_both_pixels_are_the_whole_chord(angle, fraction, model):
    (ray,) = footprints([angle], 4.0, 8, model)
    below, above = (
        min(ray["peak"], max(0.0, ray["top"] - ray["fall"] * distance))
        for distance in (fraction * ray["spacing"], (1 - fraction) * ray["spacing"])
    )
    assert below + above == pytest.approx(ray["peak"], rel=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_ray_between_two_pixels_gives_half_to_each(backend):
    projector = make_projector(backend, 1, 4)
    image = np.arange(16, dtype=np.float32).reshape(1, 4, 4)
    down, right = project(projector, image, np.array([0.0, np.pi / 2]), 1.5)[:, 0]
    np.testing.assert_allclose(down, [26, 30, 34, 18], rtol=1e-6)  # columns sum up to 24, 28, 32, 36
    np.testing.assert_allclose(right, [46, 30, 14, 3], rtol=1e-6)  # rows to 6, 22, 38, 54


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("slices", [1, 2, 3, 17, 40, 2048])
def test_layouts_keep_every_number(backend, slices):
    projector = make_projector(backend, slices, 9)
    rng = np.random.default_rng(1)
    volume, sinogram = rng.random((slices, 9, 9), np.float32), rng.random((5, slices, 9), np.float32)
    exported = projector.export_volume(projector.import_volume(volume))
    assert np.array_equal(exported, volume)
    assert exported.flags.c_contiguous
    assert np.array_equal(projector.export_sinogram(import_sinogram(projector, sinogram)), sinogram)
    assert not projector.export_volume(projector.new_volume()).any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("slices", [1, 3])
def test_what_no_ray_crosses_stays(backend, slices):
    """One projection, axis far from the middle: rays beside the image, and pixels beside the detector."""
    projector = make_projector(backend, slices, 16)
    matrix = dense(16, [0.4], 2.2, "exact")[0]
    before = np.ones((slices, 16, 16), np.float32)
    volume, geometry = projector.import_volume(before), projector.geometry(np.array([0.4]), 2.2)
    residual = projector.residual(
        volume, import_sinogram(projector, np.full((1, slices, 16), 100, np.float32)), geometry
    )
    projector.add_back(volume, residual, geometry)
    crossed = matrix.sum(axis=0).reshape(16, 16) > 1e-6
    assert 0 < np.count_nonzero(crossed) < 256
    assert 0 < np.count_nonzero(matrix.sum(axis=1)) < 16
    assert np.array_equal(projector.export_volume(volume)[0] != 1, crossed)
    assert np.isfinite(projector.export_volume(volume)).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("model", MODELS)
def test_pixels_outside_the_circle_are_no_part_of_the_matrix(backend, model):
    columns = 9
    offset = np.arange(columns) - 4
    member = (offset[:, None] ** 2 + offset**2 <= (0.8 * columns / 2) ** 2).ravel()
    projector = make_projector(backend, columns**2, columns, model=model, circle=0.8)
    matrix = project(projector, np.eye(columns**2, dtype=np.float32).reshape(-1, columns, columns), ANGLES, 4.2)
    expected = dense(columns, ANGLES, 4.2, model) * member
    np.testing.assert_allclose(matrix.transpose(0, 2, 1), expected, atol=2e-4)
    geometry = projector.geometry(ANGLES, 4.2)
    ones = import_sinogram(projector, np.ones((len(ANGLES), columns**2, columns), np.float32))
    volume = projector.new_volume()
    projector.add_back(volume, projector.residual(volume, ones, geometry), geometry)
    image = projector.export_volume(volume)[0].ravel()
    norms = (expected**2).sum(axis=2)
    change = np.einsum("arp,ar->p", expected, np.divide(1, norms, where=norms > 1e-6, out=np.zeros_like(norms)))
    sums = expected.sum(axis=(0, 1))
    np.testing.assert_allclose(image, np.divide(change, sums, where=member, out=np.zeros_like(sums)), rtol=2e-3)
    assert not image[~member].any()


SLICES = [1, 2, 3, 17, 40]
GEOMETRY = {
    "columns": st.integers(2, 45),
    "angles": st.lists(st.floats(-7, 7) | st.integers(-8, 8).map(lambda k: k * np.pi / 4), min_size=1, max_size=40).map(
        np.array
    ),
    "share": st.floats(0.01, 0.99),  # of the detector, left of the axis
    "model": st.sampled_from(MODELS),
    "circle": st.none() | st.floats(0.1, 1.5),
    "seed": st.integers(0, 1000),
}


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_slice_may_have_its_own_axis(backend):
    columns, angles, centers = 8, ANGLES[::3], np.array([4.0, 3.17, 6.2, 4.0, 2.9])
    image = np.random.default_rng(3).random((len(centers), columns, columns), np.float32)
    projector = make_projector(backend, len(centers), columns, axis_per_slice=True)
    projected = project(projector, image, angles, centers)
    for k, center in enumerate(centers):
        expected = dense(columns, angles, center, "exact") @ image[k].ravel()
        np.testing.assert_allclose(projected[:, k], expected, atol=1e-3)
    geometry, volume = projector.geometry(angles, centers), projector.new_volume()
    progress = sirt(projector, volume, import_sinogram(projector, projected), geometry, iterations=300)
    assert progress.misfit < 0.01
    with pytest.raises(ValueError, match="4 centres do not fit 5 slices"):
        projector.geometry(angles, centers[:4])


@pytest.mark.parametrize("slices", SLICES)
@settings(deadline=None, max_examples=20)
@given(**GEOMETRY)
def test_compiled_projections_are_adjoint(slices, columns, angles, share, model, circle, seed):
    projector = make_projector("numba", slices, columns, model=model, circle=circle)
    rng = np.random.default_rng(seed)
    x, y = rng.random((slices, columns, columns), np.float32), rng.random((len(angles), slices, columns), np.float32)
    geometry = projector.geometry(angles, share * columns)
    volume, sinogram = projector.import_volume(x), import_sinogram(projector, y)
    x = projector.export_volume(volume)  # 0 outside the circle
    forward = projector.export_sinogram(projector.forward(volume, geometry)).astype(np.float64)
    back = projector.export_volume(projector.back(sinogram, geometry)).astype(np.float64)
    scale = np.linalg.norm(forward) * np.linalg.norm(y)
    assert abs(np.vdot(forward, y) - np.vdot(x, back)) <= 1e-5 * scale


@pytest.mark.parametrize("slices", SLICES)
@settings(deadline=None, max_examples=20)
@given(**GEOMETRY, norm=st.sampled_from(["squared", "plain"]))
def test_compiled_equals_reference(slices, columns, angles, share, model, circle, seed, norm):
    center = share * columns
    image = np.random.default_rng(seed).random((slices, columns, columns), np.float32)
    results = []
    for backend in BACKENDS:
        projector = make_projector(backend, slices, columns, model=model, norm=norm, circle=circle)
        geometry = projector.geometry(angles, center)
        sinogram = projector.forward(projector.import_volume(image), geometry)
        volume = projector.new_volume()
        progress = sirt(projector, volume, sinogram, geometry, iterations=4)
        results.append((projector.export_volume(volume), progress))
    (reference, reference_progress), (compiled, progress) = results
    np.testing.assert_allclose(compiled, reference, atol=1e-4 * max(1e-3, np.ptp(reference)))
    assert progress.change == pytest.approx(reference_progress.change, rel=1e-3, abs=1e-4)
    assert progress.misfit == pytest.approx(reference_progress.misfit, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("slices", [1, 2, 17, 40])
@pytest.mark.parametrize("count", [1, 5, 12, 40])
def test_weights_that_are_kept_or_not_give_the_same(slices, count):
    projector, random = make_projector("numba", slices, 20, circle=0.9), np.random.default_rng(3)
    angles = np.linspace(0.0, 2.0, count)
    sinogram = import_sinogram(projector, random.random((count, slices, 20), np.float32))

    def updated(geometries):
        volume = projector.new_volume()
        for geometry in geometries:
            projector.add_back(volume, projector.residual(volume, sinogram, geometry), geometry)
        return projector.export_volume(volume)

    again = projector.geometry(angles, 10.2)
    kept = updated([again] * 4)
    assert again.weighed
    assert np.array_equal(kept, updated([projector.geometry(angles, 10.2) for _ in range(4)]))


@pytest.mark.parametrize("slices", [1, 40])
def test_threads_do_not_change_a_bit(slices):
    rng = np.random.default_rng(2)
    projector = make_projector("numba", slices, 75)
    sinogram = import_sinogram(projector, rng.random((50, slices, 75), np.float32))
    traced_alone = None
    results = []
    for threads in (1, numba.config.NUMBA_NUM_THREADS):
        numba.set_num_threads(threads)
        try:
            geometry = projector.geometry(np.linspace(0, 3, 50), 33.3)
            volume = projector.new_volume()
            progress = sirt(projector, volume, sinogram, geometry, iterations=3)
            traced_alone = traced_alone or geometry
            residual = projector.residual(volume, sinogram, traced_alone)
        finally:
            numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)
        results.append((progress, projector.export_volume(volume), residual))
    (one_progress, *one), (progress, *many) = results
    assert one_progress == progress
    assert all(np.array_equal(a, b) for a, b in zip(one, many, strict=True))


@pytest.mark.parametrize("slices", [1, 5])
@pytest.mark.parametrize("columns", [2, 3, 15, 16, 17, 33])
@pytest.mark.parametrize("count", [3, 40])
def test_nothing_outside_the_arrays_is_touched(slices, columns, count):
    """Volume and residual lie among numbers that would spread if read, and would be missed if written."""
    projector, angles = make_projector("numba", slices, columns), np.linspace(0.7, 6.4, count)
    sinogram = import_sinogram(projector, np.ones((count, slices, columns), np.float32))
    plain, fenced = projector.new_volume(), fence(projector.new_volume())
    geometry = projector.geometry(angles, 0.6 * columns)
    for _ in range(2):
        projector.add_back(plain, projector.residual(plain, sinogram, geometry), geometry)
        residual = fence(projector.residual(fenced, sinogram, geometry))
        projector.add_back(fenced, residual, geometry)
        assert np.isnan(fenced.base[:FENCE]).all()
        assert np.isnan(fenced.base[-FENCE:]).all()
    assert np.array_equal(plain, fenced)
    assert plain.any()


FENCE = 64


def fence(array):
    """Return a copy of `array` that lies between numbers that are none."""
    block = np.full(array.size + 2 * FENCE, np.nan, np.float32)
    inner = block[FENCE:-FENCE]
    inner[:] = array.ravel()
    return inner.reshape(array.shape)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_geometry_is_refused(backend):
    projector = make_projector(backend, 1, 16)
    with pytest.raises(ValueError, match="outside the detector"):
        projector.geometry(np.zeros(1), 16.0)
    with pytest.raises(ValueError, match="outside the detector"):
        projector.geometry(np.zeros(1), float("nan"))
    for angles in ([], [np.inf], [[0.0]]):
        with pytest.raises(ValueError, match="finite"):
            projector.geometry(np.array(angles), 8.0)


def test_what_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="back end 'cupy'"):
        make_projector("cupy", 1, 8)
    with pytest.raises(ValueError, match="model 'siddon'"):
        make_projector("numba", 1, 8, model="siddon")
    with pytest.raises(ValueError, match="norm 'l2'"):
        make_projector("numpy", 1, 8, norm="l2")
    with pytest.raises(ValueError, match="at least one slice"):
        make_projector("numpy", 0, 8)
    with pytest.raises(ValueError, match="circle of 0 of"):
        make_projector("numpy", 1, 8, circle=0.0)


def test_offsets_that_need_more_than_32_bits_are_refused():
    make_projector("numba", 32, 8180)
    with pytest.raises(ValueError, match="too large"):
        make_projector("numba", 32, 8200)


@pytest.mark.parametrize(("slices", "loops"), [(1, _single), (3, _kernels)])
def test_warm_up_compiles_all_that_is_called(slices, loops):
    projector = make_projector("numba", slices, 20)
    projector.warm_up()
    kernels = (
        _rays.fill_angles,
        loops.fill_residual,
        loops.add_back,
        _kernels.sum_squares,
    )
    compiled = [len(kernel.signatures) for kernel in kernels]
    volume = projector.new_volume()
    sinogram = import_sinogram(projector, np.ones((3, slices, 20), np.float32))
    geometry = projector.geometry(np.arange(3.0), 10.0)
    sirt(projector, volume, sinogram, geometry)
    projector.back(projector.forward(volume, geometry), geometry)
    assert [len(kernel.signatures) for kernel in kernels] == compiled


def test_processes_that_compile_at_once_run_the_right_code(tmp_path: Path) -> None:
    """Numba's cache is not made for several writers: without a lock it mixes up code for different lanes."""
    program = (
        "import sys, numpy as np\n"
        "from aps_mini_apps.sirt.projectors import make_projector\n"
        "for slices in map(int, sys.argv[1:]):\n"
        "    projector = make_projector('numba', slices, 5)\n"
        "    ones = projector.import_volume(np.ones((slices, 5, 5), np.float32))\n"
        "    geometry = projector.geometry(np.zeros(2), 2.5)\n"
        "    sinogram = projector.export_sinogram(projector.forward(ones, geometry))\n"
        "    np.testing.assert_allclose(sinogram, 5.0, rtol=1e-5)\n"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    compilers = [subprocess.Popen([sys.executable, "-c", program, str(slices)], env=environment) for slices in (3, 5)]
    assert [compiler.wait(170) for compiler in compilers] == [0, 0]
    subprocess.run([sys.executable, "-c", program, "3", "5"], env=environment, check=True, timeout=120)


@pytest.mark.parametrize("cpu", ["haswell", "generic"])
def test_processors_without_wide_vectors_compute_the_same(cpu: str, tmp_path: Path) -> None:
    """AVX2 at most, or what every processor of this kind has."""
    if cpu == "haswell" and platform.machine() != "x86_64":
        pytest.skip("haswell is an x86-64 processor")
    program = (
        "import numpy as np\n"
        "from aps_mini_apps.sirt.projectors import _kernels, _single, make_projector\n"
        "def update(backend, slices):\n"
        "    projector = make_projector(backend, slices, 33)\n"
        "    geometry = projector.geometry(np.linspace(-1, 4, 7), 15.2)\n"
        "    volume = projector.import_volume(np.random.default_rng(4).random((slices, 33, 33), np.float32))\n"
        "    sinogram = projector.stack([projector.measure(np.ones((slices, 33), np.float32))] * 7)\n"
        "    for _ in range(2):\n"
        "        projector.add_back(volume, projector.residual(volume, sinogram, geometry), geometry)\n"
        "    return projector.export_volume(volume)\n"
        "for slices, loops in ((16, _kernels), (1, _single)):\n"
        "    np.testing.assert_allclose(update('numpy', slices), update('numba', slices), atol=1e-4)\n"
        "    code = ''.join(loops.add_back.inspect_asm().values())\n"
        "    assert code and 'zmm' not in code\n"
    )
    environment = {
        **os.environ,
        "NUMBA_CPU_NAME": cpu,
        "NUMBA_CPU_FEATURES": "+avx2,+fma" if cpu == "haswell" else "",
        "NUMBA_CACHE_DIR": str(tmp_path),
    }
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=170)
