"""The CUDA projector: on a GPU where there is one; its arithmetic always, on the CPU."""

import ctypes
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aps_mini_apps.sirt import projectors
from aps_mini_apps.sirt.algorithms import load_algorithm, names
from aps_mini_apps.sirt.projectors import make_projector
from aps_mini_apps.sirt.projectors._backends import load_backend
from tests import cuda_on_cpu
from tests.folding import make_window

SOURCE = Path(projectors.__file__).with_name("_kernels.cu")


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    return tmp_path_factory.mktemp("cuda")


@pytest.fixture(params=["GPU", "CPU"])
def cuda_projector(request, monkeypatch, compiled):
    """Return the class of the projector."""
    if request.param == "CPU":
        return cuda_on_cpu.load(monkeypatch, compiled).CudaProjector
    try:
        return load_backend("cuda")
    except ValueError as error:
        pytest.skip(f"no GPU: {error}")


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    slices=st.sampled_from([1, 3, 17]),
    columns=st.integers(2, 40),
    angles=st.lists(st.floats(-7, 7) | st.integers(-8, 8).map(lambda k: k * np.pi / 4), min_size=1, max_size=9),
    share=st.floats(0.01, 0.99),
    model=st.sampled_from(["exact", "joseph"]),
    norm=st.sampled_from(["squared", "plain"]),
    circle=st.sampled_from([None, 0.8]),
    seed=st.integers(0, 1000),
)
def test_equals_the_reference(cuda_projector, slices, columns, angles, share, model, norm, circle, seed):
    rng = np.random.default_rng(seed)
    image = rng.random((slices, columns, columns), np.float32)
    lines = rng.random((len(angles), slices, columns), np.float32)
    results = []
    for kind in (load_backend("numpy"), cuda_projector):
        projector = kind(slices, columns, model, norm, circle)
        geometry = projector.geometry(np.array(angles), share * columns)
        volume = projector.import_volume(image)
        sinogram = projector.stack([projector.measure(line) for line in lines])
        forward = projector.export_sinogram(projector.forward(volume, geometry))
        back = projector.export_volume(projector.back(sinogram, geometry))
        residual = projector.residual(volume, sinogram, geometry)
        misfit, squares = projector.misfit(residual, sinogram, geometry), projector.add_back(volume, residual, geometry)
        results.append([forward, back, projector.export_volume(volume), misfit, squares])
    for reference, ours in zip(*results, strict=True):
        np.testing.assert_allclose(ours, reference, atol=1e-4 * max(1.0, np.max(np.abs(reference))), rtol=1e-3)


def test_layouts_keep_every_number(cuda_projector):
    projector = cuda_projector(3, 9, "exact", "squared")
    rng = np.random.default_rng(1)
    volume, sinogram = rng.random((3, 9, 9), np.float32), rng.random((5, 3, 9), np.float32)
    assert np.array_equal(projector.export_volume(projector.import_volume(volume)), volume)
    stacked = projector.stack([projector.measure(line) for line in sinogram])
    assert np.array_equal(projector.export_sinogram(stacked), sinogram)


def test_half_the_memory_keeps_three_digits(cuda_projector):
    angles, image = np.linspace(0.0, 3.0, 24), np.random.default_rng(2).random((2, 24, 24), np.float32) * 0.01
    volumes = []
    for half in (False, True):
        projector = cuda_projector(2, 24, "exact", "squared", half=half)
        geometry, volume = projector.geometry(angles, 12.0), projector.new_volume()
        sinogram = projector.forward(projector.import_volume(image), geometry)
        for _ in range(10):
            projector.add_back(volume, projector.residual(volume, sinogram, geometry), geometry)
        volumes.append(volume)
    single, double = volumes[1], volumes[0]
    assert single.nbytes == double.nbytes // 2
    np.testing.assert_allclose(projector.export_volume(single), projector.export_volume(double), atol=2e-5)


@pytest.mark.parametrize("name", names())
def test_every_algorithm_runs(cuda_projector, name):
    angles = np.linspace(0.0, np.pi, 12, endpoint=False)
    measured = np.random.default_rng(3).random((12, 2, 16), np.float32)
    images = []
    for projector in (make_projector("numpy", 2, 16), cuda_projector(2, 16, "exact", "squared")):
        window = make_window(projector, measured, angles, 8.0, iterations=3)
        volume, _ = load_algorithm(name).fold(window, projector.new_volume(), projector)
        images.append(projector.export_volume(volume))
    np.testing.assert_allclose(images[1], images[0], atol=1e-3 * np.ptp(images[0]))


@pytest.mark.skipif(sys.platform != "linux", reason="no CUDA compiler for this system among the test tools")
@pytest.mark.parametrize("options", [[], ["-DHALF"]], ids=["32 bits", "16 bits"])
def test_the_kernels_compile_for_a_gpu(options):
    """NVRTC is the compiler that CuPy calls; it needs no GPU."""
    (folder,) = importlib.util.find_spec("nvidia.cuda_nvrtc").submodule_search_locations
    folder = Path(folder)
    nvrtc = ctypes.CDLL(str(next(folder.glob("lib/libnvrtc.so.*"))))
    options = [*options, "--gpu-architecture=compute_80", f"-I{folder.parent / 'cuda_runtime/include'}"]
    program = ctypes.c_void_p()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), SOURCE.read_bytes(), b"kernels.cu", 0, None, None) == 0
    given_options = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    failed, size = nvrtc.nvrtcCompileProgram(program, len(options), given_options), ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    assert not failed, log.value.decode()
