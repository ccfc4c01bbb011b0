"""Every algorithm against its formula on a dense matrix, against the phantom, and on both back ends."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from aps_mini_apps.sirt.algorithms import _contract, load_algorithm, names
from aps_mini_apps.sirt.algorithms.catalogue import BUILT_IN
from aps_mini_apps.sirt.projectors import make_projector
from tests.folding import make_window
from tests.yardstick import phantom, quality, sinogram

COLUMNS, CENTER, ANGLES = 12, 6.4, np.linspace(0.0, 3.0, 9)
BACKENDS = ("numpy", "numba")


@pytest.fixture(autouse=True)
def small_subsets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let subsets be as small as the scans that a dense matrix can follow."""
    monkeypatch.setattr(_contract, "FEWEST", 1)


@pytest.fixture(scope="module")
def matrix() -> np.ndarray:
    """A, dense: (rays, pixels)."""
    projector = make_projector("numpy", COLUMNS**2, COLUMNS)
    pixels = projector.import_volume(np.eye(COLUMNS**2, dtype=np.float32).reshape(-1, COLUMNS, COLUMNS))
    columns = projector.export_sinogram(projector.forward(pixels, projector.geometry(ANGLES, CENTER)))
    return columns.swapaxes(1, 2).reshape(-1, COLUMNS**2).astype(np.float64)


@pytest.fixture(scope="module")
def measured(matrix: np.ndarray) -> np.ndarray:
    """Line integrals (projections, slices, columns) of two slices, with noise."""
    rng = np.random.default_rng(3)
    rays = matrix @ rng.random((COLUMNS**2, 2)) + 0.1 * rng.standard_normal((len(matrix), 2))
    return rays.reshape(len(ANGLES), COLUMNS, 2).transpose(0, 2, 1).astype(np.float32)


def fold(backend: str, name: str, measured: np.ndarray, updates: int, **parameters: object) -> np.ndarray:
    """Return (pixels, slices) after one window with `updates` updates."""
    projector = make_projector(backend, measured.shape[1], COLUMNS)
    window = make_window(projector, measured, ANGLES, CENTER, iterations=updates)
    volume, _ = load_algorithm(name, parameters).fold(window, projector.new_volume(), projector)
    return projector.export_volume(volume).reshape(measured.shape[1], -1).T


def rays(measured: np.ndarray) -> np.ndarray:
    return measured.transpose(0, 2, 1).reshape(-1, measured.shape[1]).astype(np.float64)


def sirt_step(matrix: np.ndarray, x: np.ndarray, b: np.ndarray) -> np.ndarray:
    norms = (matrix**2).sum(axis=1, keepdims=True)
    weighted = np.where(norms > 1e-6, (b - matrix @ x) / np.maximum(norms, 1e-6), 0.0)
    return matrix.T @ weighted / np.maximum(matrix.sum(axis=0)[:, None], 1e-6)


def subset_rows(order: tuple[int, ...]) -> list[np.ndarray]:
    """Rows of the matrix of every `len(order)`-th projection, subset by subset."""
    rows = np.arange(len(ANGLES) * COLUMNS).reshape(len(ANGLES), COLUMNS)
    return [rows[k :: len(order)].ravel() for k in order]


@pytest.mark.parametrize("backend", BACKENDS)
def test_ossirt_is_its_formula(backend: str, matrix: np.ndarray, measured: np.ndarray) -> None:
    b, x, before, ahead, time = rays(measured), np.zeros((COLUMNS**2, 2)), None, 0.0, 1.0
    for number in range(4):
        x = x + ahead
        for rows in subset_rows((0, 2, 1)):
            x = x + sirt_step(matrix[rows], x, b[rows])
        x = np.maximum(x, 0.0)
        later = (1 + np.sqrt(1 + 4 * time**2)) / 2
        if number:
            assert ((x - before - ahead) * (x - before)).sum() > 0  # no restart here
            ahead = (x - before) * (time - 1) / later
        before, time = x, later
    np.testing.assert_allclose(fold(backend, "ossirt", measured, 4, subsets=3), x, atol=2e-4 * np.ptp(x))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "order"), [("mlem", (0,)), ("osem", (0, 2, 1))])
def test_expectation_maximisation_is_its_formula(
    backend: str, name: str, order: tuple[int, ...], matrix: np.ndarray, measured: np.ndarray
) -> None:
    b, x = np.maximum(rays(measured), 0.0), np.ones((COLUMNS**2, 2))
    for _ in range(3):
        for rows in subset_rows(order):
            part = matrix[rows]
            ratio = b[rows] / np.maximum(part @ x, 1e-6)
            x = x * (part.T @ ratio + 1e-6) / (part.sum(axis=0)[:, None] + 1e-6)
    parameters = {"subsets": len(order)} if name == "osem" else {}
    image = fold(backend, name, measured, 3, **parameters)
    np.testing.assert_allclose(image, x, atol=2e-4 * np.ptp(x))
    assert image.min() >= 0.0


@pytest.mark.parametrize("backend", BACKENDS)
def test_cgls_finds_the_least_squares_in_its_krylov_space(
    backend: str, matrix: np.ndarray, measured: np.ndarray
) -> None:
    """After k steps x is the best of all in the span of (A'A)^i A'b, i < k: found here without conjugation."""
    b = rays(measured)[:, :1]  # one slice: the steps are common to all slices
    space = np.empty((COLUMNS**2, 0))
    direction = matrix.T @ b
    for _ in range(4):
        direction = direction - space @ (space.T @ direction)
        space = np.hstack([space, direction / np.linalg.norm(direction)])
        direction = matrix.T @ (matrix @ space[:, -1:])
    x = space @ np.linalg.lstsq(matrix @ space, b, rcond=None)[0]
    np.testing.assert_allclose(fold(backend, "cgls", measured[:, :1], 4), x, atol=1e-3 * np.ptp(x))


@pytest.mark.parametrize("backend", BACKENDS)
def test_tv_is_sirt_and_steps_down_the_total_variation(backend: str, matrix: np.ndarray, measured: np.ndarray) -> None:
    def variation(x: np.ndarray, softness: float) -> float:
        image = x.reshape(COLUMNS, COLUMNS, 2)
        down, right = np.zeros_like(image), np.zeros_like(image)
        down[:-1], right[:, :-1] = np.diff(image, axis=0), np.diff(image, axis=1)
        return float(np.sqrt(down**2 + right**2 + softness**2).sum())

    change = sirt_step(matrix, np.zeros((COLUMNS**2, 2)), rays(measured))
    x, softness = np.maximum(change, 0.0), 1e-3 * np.abs(np.maximum(change, 0.0)).max()
    slope = np.empty_like(x)
    for index in np.ndindex(x.shape):  # by differences, not by the formula that the algorithm uses
        step = np.zeros_like(x)
        step[index] = 1e-6
        slope[index] = (variation(x + step, softness) - variation(x - step, softness)) / 2e-6
    x = x - slope * 0.3 * np.linalg.norm(change) / np.linalg.norm(slope)
    image = fold(backend, "tv", measured, 1, subsets=1, steps=1, weight=0.3)
    np.testing.assert_allclose(image, x, atol=2e-3 * np.ptp(x))


@pytest.mark.parametrize("name", [name for name in BUILT_IN if name != "fbp"])
def test_more_updates_explain_more(name: str) -> None:
    columns, angles = 48, np.arange(60) * np.pi / 60
    projector = make_projector("numba", 2, columns)
    measured = np.repeat(sinogram(columns, angles)[:, None], 2, axis=1)
    algorithm, volume, misfits = load_algorithm(name), projector.new_volume(), []
    for number in range(6):
        window = make_window(projector, measured, angles, columns / 2, number=number, iterations=2)
        volume, progress = algorithm.fold(window, volume, projector)
        misfits.append(progress.misfit)
        assert progress.change > 0.0
    assert misfits == sorted(misfits, reverse=True)
    assert misfits[-1] < 0.12


@pytest.mark.parametrize("filter_", ["ramp", "shepp-logan", "cosine", "hamming", "hann"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_fbp_is_the_phantom(backend: str, filter_: str) -> None:
    columns, angles = 96, np.arange(150) * np.pi / 150
    projector = make_projector(backend, 1, columns)
    window = make_window(projector, sinogram(columns, angles)[:, None], angles, columns / 2)
    volume, _ = load_algorithm("fbp", {"filter": filter_}).fold(window, projector.new_volume(), projector)
    image = projector.export_volume(volume)[0]
    assert quality(image, phantom(columns))[0] < {"ramp": 0.075, "hann": 0.12}.get(filter_, 0.11)
    middle = slice(columns // 4, 3 * columns // 4)  # the ramp's mean is right: no veil over the image
    assert image[middle, middle].mean() == pytest.approx(phantom(columns)[middle, middle].mean(), rel=0.01)


def test_fbp_warns_of_a_part_of_the_half_turn_once_and_keeps_what_runs_empty() -> None:
    projector, angles = make_projector("numpy", 1, 16), np.linspace(0.0, 2.0, 10)
    window = make_window(projector, np.ones((10, 1, 16)), angles, 8.0)
    fbp = load_algorithm("fbp")
    with pytest.warns(UserWarning, match=r"of 127 degrees: it needs the half turn in one window"):
        volume, _ = fbp.fold(window, projector.new_volume(), projector)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fbp.fold(window, volume, projector)
    window.fresh = 0
    assert fbp.fold(window, volume, projector)[0] is volume


@pytest.mark.parametrize("name", BUILT_IN)
def test_both_back_ends_agree(name: str, measured: np.ndarray) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # fbp: the angles end a little before the half turn
        images = [fold(backend, name, measured, 3) for backend in BACKENDS]
    np.testing.assert_allclose(*images, rtol=0, atol=2e-3 * np.ptp(images[0]))


def test_subsets_hold_every_projection_once_and_enough_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    projector, angles = make_projector("numpy", 1, 8), np.linspace(0.0, 3.0, 11)
    window = make_window(projector, np.arange(11 * 8.0).reshape(11, 1, 8), angles, 4.0)
    parts = window.subsets(projector, 4)
    assert sorted(len(part.angles) for part in parts) == [2, 3, 3, 3]
    assert sorted(np.concatenate([part.angles for part in parts])) == sorted(angles)
    for part in parts:
        rows = np.searchsorted(angles, part.angles)
        np.testing.assert_array_equal(part.sinogram, window.sinogram[rows])
    assert window.subsets(projector, 4) is parts
    assert window.subsets(projector, 1) == [window]
    assert len(window.subsets(projector, 99)) == 11
    monkeypatch.setattr(_contract, "FEWEST", 5)
    assert [len(part.angles) for part in window.subsets(projector, 98)] == [6, 5]
    monkeypatch.setattr(_contract, "FEWEST", 12)
    assert window.subsets(projector, 98) == [window]


def test_figures_of_a_window_are_computed_where_the_algorithm_asks_for_none() -> None:
    projector, angles = make_projector("numpy", 1, 16), np.linspace(0.0, 3.0, 10)
    measured = np.ones((10, 1, 16))
    window = make_window(projector, measured, angles, 8.0, iterations=2)
    volume, progress = load_algorithm("cgls").fold(window, projector.new_volume(), projector)
    difference = projector.forward(volume, window.geometry) - window.sinogram
    assert progress.misfit == pytest.approx(np.linalg.norm(difference) / np.linalg.norm(measured), rel=1e-3)
    single = make_window(projector, measured, angles, 8.0)
    one, _ = load_algorithm("cgls").fold(single, projector.new_volume(), projector)
    assert progress.change == pytest.approx(np.linalg.norm(volume - one), rel=1e-3)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("srit", {}, "no algorithm is called 'srit'; did you mean sirt?"),
        ("nonsense", {}, "known are sirt, ossirt"),
        ("sirt", {"relaxtion": 1}, "algorithm sirt has no parameter 'relaxtion'; did you mean relaxation?"),
        ("cgls", {"subsets": 2}, "algorithm cgls has no parameter 'subsets'; it has none"),
        ("ossirt", {"subsets": "0"}, "subsets: .*greater than or equal to 1"),
        ("ossirt", {"subsets": "many"}, "subsets: .*valid integer"),
        ("fbp", {"filter": "ram"}, "filter: .*'ramp'"),
    ],
)
def test_what_does_not_exist_is_refused(name: str, parameters: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_algorithm(name, parameters)


def test_parameters_are_told_and_converted_from_text() -> None:
    about = load_algorithm("ossirt", {"subsets": "7", "momentum": "no"}).about()
    assert about["algorithm"] == "ossirt"
    assert (about["parameter_subsets"], about["parameter_momentum"]) == (7, False)


PLUGIN = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "tomo-extra"
version = "1"
[project.entry-points."mini_stream.algorithms"]
half = "tomo_extra.half"
broken = "tomo_extra.broken"
[tool.setuptools]
packages = ["tomo_extra"]
"""


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which a package with two algorithms, one of them broken, was installed."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    (source / "pyproject.toml").write_text(PLUGIN)
    package = source / "tomo_extra"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "half.py").write_text(
        '"""Halve it."""\ndef update(w, volume, p, q):\n    volume *= 0.5\n    return volume\n'
    )
    (package / "broken.py").write_text("import no_such_module\n")
    install = ["pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation"]
    subprocess.run([sys.executable, "-m", *install, "--target", str(target), str(source)], check=True)
    return target


def test_another_package_brings_an_algorithm(plugins: Path) -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "ministream", "algorithms"],
        env={**os.environ, "PYTHONPATH": str(plugins)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert [name for name in BUILT_IN if f"\n{name} " not in f"\n{listed}"] == []
    assert "half       Halve it." in listed
    assert "broken     broken: algorithm broken cannot be loaded from tomo_extra.broken of tomo-extra" in listed


def test_a_broken_plug_in_fails_only_when_it_is_chosen(plugins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(plugins))
    assert names()[-2:] == ["broken", "half"]
    projector = make_projector("numpy", 1, 8)
    window = make_window(projector, np.ones((2, 1, 8)), np.zeros(2), 4.0)
    volume, _ = load_algorithm("half").fold(window, projector.new_volume() + 1.0, projector)
    np.testing.assert_array_equal(volume, np.float32(0.5))
    with pytest.raises(ValueError, match=r"tomo_extra.broken of tomo-extra: ModuleNotFoundError: .*no_such_module"):
        load_algorithm("broken")
