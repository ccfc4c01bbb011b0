"""Back ends of other packages against ours, and what is said where one is missing."""

import importlib.util
import sys

import numpy as np
import pytest

from aps_mini_apps.sirt import program
from aps_mini_apps.sirt.algorithms import load_algorithm
from aps_mini_apps.sirt.projectors import choose_backend, make_projector
from aps_mini_apps.sirt.settings import SirtSettings
from ministream.base.errors import UserError
from tests import yardstick
from tests.folding import make_window

ANGLES = np.array([0.1, 0.3, 1.1, -0.7, 2.9, 4.0, 5.5])  # none along the borders of pixels: there tastes differ


@pytest.mark.parametrize("circle", [None, 0.8])
@pytest.mark.parametrize("norm", ["plain", "squared"])
@pytest.mark.parametrize("model", ["exact", "joseph"])
class TestAstra:
    def pair(self, **options):
        return [make_projector(backend, 3, 24, **options) for backend in ("astra", "numba")]

    def test_projects_as_ours(self, model, norm, circle):
        rng = np.random.default_rng(1)
        image, lines = rng.random((3, 24, 24), np.float32), rng.random((7, 3, 24), np.float32)
        forward, back = [], []
        for projector in self.pair(model=model, norm=norm, circle=circle):
            geometry = projector.geometry(ANGLES, 10.3)
            volume, sinogram = projector.import_volume(image), projector.stack([projector.measure(p) for p in lines])
            forward.append(projector.export_sinogram(projector.forward(volume, geometry)))
            back.append(projector.export_volume(projector.back(sinogram, geometry)))
        np.testing.assert_allclose(*forward, atol=1e-4 * forward[1].max())
        np.testing.assert_allclose(*back, atol=1e-4 * back[1].max())

    def test_updates_as_ours(self, model, norm, circle):
        lines = np.random.default_rng(2).random((7, 3, 24), np.float32)
        images = []
        for projector in self.pair(model=model, norm=norm, circle=circle):
            geometry, volume = projector.geometry(ANGLES, 12.0), projector.new_volume()
            sinogram = projector.stack([projector.measure(p) for p in lines])
            for _ in range(5):
                projector.add_back(volume, projector.residual(volume, sinogram, geometry), geometry)
            images.append(projector.export_volume(volume))
        np.testing.assert_allclose(*images, atol=2e-4 * np.ptp(images[1]))


class TestTomopy:
    @pytest.fixture(autouse=True)
    def _installed(self):
        if importlib.util.find_spec("tomopy") is None:
            pytest.skip("TomoPy is not installed (it comes by conda: environment.yml)")

    def test_sirt_is_its_own(self, shared_data):
        golden = np.load(shared_data / "golden" / "sirt30_512x360.npz")["tomopy"]
        angles = np.linspace(0.0, np.pi, 360, endpoint=False)
        projector = make_projector("tomopy", 1, 512)
        measured = yardstick.sinogram(512, angles).reshape(360, 1, 512)
        window = make_window(projector, measured, angles, 256.0, iterations=30)
        volume, progress = load_algorithm("sirt").fold(window, projector.new_volume(), projector)
        np.testing.assert_allclose(projector.export_volume(volume)[0], golden, atol=1e-3 * np.ptp(golden))
        assert progress.misfit < 0.05
        assert progress.change > 0.0

    def test_goes_on_from_a_volume_and_projects_as_ours(self):
        measured = np.random.default_rng(3).random((7, 2, 24), np.float32)
        images = []
        for backend in ("tomopy", "numba"):
            projector = make_projector(backend, 2, 24)
            window = make_window(projector, measured, ANGLES, 11.0, iterations=2)
            volume = projector.import_volume(np.full((2, 24, 24), 0.02, np.float32))
            volume, progress = load_algorithm("sirt").fold(window, volume, projector)
            images.append(projector.export_volume(volume))
            assert progress.misfit > 0.0
        np.testing.assert_allclose(*images, atol=0.01 * np.ptp(images[1]))

    @pytest.mark.parametrize(("algorithm", "parameters"), [("cgls", {}), ("sirt", {"relaxation": 0.5})])
    def test_what_it_has_not_is_refused_with_what_it_has(self, algorithm, parameters):
        projector = make_projector("tomopy", 1, 24)
        window = make_window(projector, np.ones((7, 1, 24)), ANGLES, 12.0)
        with pytest.raises(ValueError, match=r"only algorithms of its own .here sirt and mlem"):
            load_algorithm(algorithm, parameters).fold(window, projector.new_volume(), projector)


@pytest.mark.parametrize(
    ("backend", "package", "remedy"),
    [
        ("astra", "astra", r"pip install 'mini-stream\[astra\]'"),
        ("tomopy", "tomopy", "conda env create --file environment.yml"),
        ("cuda", "cupy", r"NVIDIA GPU and `pip install 'mini-stream\[cuda\]'"),
    ],
)
def test_a_worker_without_the_package_says_what_to_install_and_takes_no_port(
    backend, package, remedy, monkeypatch, tmp_path
):
    monkeypatch.setitem(sys.modules, package, None)  # as where it is not installed
    for module in ("with_astra", "with_tomopy", "cuda"):
        monkeypatch.delitem(sys.modules, f"aps_mini_apps.sirt.projectors.{module}", raising=False)
    settings = SirtSettings(backend=backend, recon_output_dir=str(tmp_path), source="tcp://127.0.0.1:1")
    with pytest.raises(UserError, match=f"back end {backend} cannot be used here .*{remedy}.*--backend numba"):
        program.main(settings)
    if backend == "cuda":
        assert choose_backend("auto") == "numba"


def test_half_is_for_the_gpu():
    with pytest.raises(ValueError, match="numba stores in 32 bits only"):
        make_projector("numba", 1, 8, half=True)


def test_an_unknown_back_end_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="'cupy' does not exist: use one of auto, numba, cuda, numpy, astra, tomopy"):
        make_projector("cupy", 1, 8)
