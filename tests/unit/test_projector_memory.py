"""A slab that does not fit is refused, with the sum and the way out."""

import importlib.util
import re
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from aps_mini_apps.batch import reconstruct_frames
from aps_mini_apps.frames import Frame, FrameKind
from aps_mini_apps.sirt.algorithms.catalogue import BUILT_IN
from aps_mini_apps.sirt.projectors import make_projector, memory
from aps_mini_apps.sirt.projectors.memory import Held, Task, check_memory, memory_available, memory_needed
from aps_mini_apps.sirt.reconstruction import Reconstruction
from aps_mini_apps.sirt.user_algorithm import choose_algorithm
from tests import cuda_on_cpu

GIB = 2**30
LARGE = Task(columns=2048, window=32)
EXAMPLES = sorted(map(str, Path(__file__).parents[2].glob("examples/*.py")))


@pytest.fixture
def limits(tmp_path, monkeypatch):
    """Return a function that says what the machine and the container report."""
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)

    def report(available=None, limit=None, used=0, files=0):
        if available is not None:
            (tmp_path / "meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable: {available // 1024} kB\n")
        if limit is not None:
            (tmp_path / "memory.max").write_text(f"{limit}\n")
            (tmp_path / "memory.current").write_text(f"{used + files}\n")
            (tmp_path / "memory.stat").write_text(f"anon {used}\nactive_file 0\ninactive_file {files}\n")

    return report


@pytest.mark.parametrize(("slices", "columns"), [(1, 64), (3, 65), (17, 128), (40, 96)])
def test_the_volume_is_counted_as_it_is_held(slices, columns):
    held = make_projector("numba", slices, columns).new_volume().nbytes
    need = memory_needed(slices, Task(columns=columns, window=1))
    assert need.volume == pytest.approx(held, rel=0.05)  # padding differs by a pixel


def test_what_fits_passes_and_what_does_not_names_sum_and_workers(limits):
    limits(available=24 * GIB)
    check_memory(512, LARGE)
    with pytest.raises(
        ValueError, match=r"2048 slices of 2048 x 2048 pixels need .*volume 32\.\d\d, copy 32"
    ) as refused:
        check_memory(2048, LARGE)
    workers = int(re.search(r"among (\d+) or more workers", str(refused.value))[1])
    check_memory(-(-2048 // workers), LARGE)
    with pytest.raises(ValueError, match="need"):
        check_memory(-(-2048 // (workers - 1)), LARGE)


def test_a_single_slice_too_many_has_no_workers_to_offer(limits):
    limits(available=GIB // 64)
    with pytest.raises(ValueError, match="not even one slice fits"):
        check_memory(4, Task(columns=4096, window=1))


def test_the_containers_limit_counts(limits):
    limits(available=24 * GIB, limit=4 * GIB, used=GIB, files=2 * GIB)
    assert memory_available() == 3 * GIB
    with pytest.raises(ValueError, match=r"3\.00 GiB are free"):
        check_memory(512, LARGE)


def test_no_limit_and_an_unknown_system_refuse_nothing(limits):
    assert memory_available() is None
    check_memory(2048, LARGE)
    limits(available=24 * GIB, limit="max")
    assert memory_available() == 24 * GIB


def frames(slices, columns, count):
    for number in range(count):
        pixels = np.random.default_rng(number).random((slices, columns), np.float32)
        yield Frame(kind=FrameKind.PROJECTION, number=number, angle=np.pi * number / count, pixels=pixels)


@pytest.mark.filterwarnings("ignore:filtered back projection")
@pytest.mark.parametrize("algorithm", [*BUILT_IN, *EXAMPLES], ids=lambda name: Path(name).stem)
@pytest.mark.parametrize(
    ("backend", "slices", "columns", "count", "most"),
    [
        ("numba", 16, 128, 24, 1.7),
        ("numba", 4, 128, 96, 1.7),
        ("numpy", 4, 48, 16, 2.3),  # in double: what it makes for itself is never all there while the algorithm works
        ("astra", 4, 48, 16, 2.3),
    ],
)
def test_no_more_is_held_than_was_asked_for(backend, slices, columns, count, most, algorithm):
    if backend == "astra" and not importlib.util.find_spec("astra"):
        pytest.skip("ASTRA is not installed")
    chosen, projector = choose_algorithm(algorithm), make_projector(backend, slices, columns)
    projector.warm_up()
    need = memory_needed(slices, Task(columns=columns, window=count, held=chosen.held(count), backend=backend)).total
    tracemalloc.start()
    try:
        reconstruction = Reconstruction(projector, length=count, step=count, iterations=2, algorithm=chosen)
        next(reconstruction.run(frames(slices, columns, count)))
        reconstruction.volume()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= need <= most * peak


def test_a_slab_that_fits_for_sirt_is_refused_for_an_algorithm_that_holds_more(limits):
    limits(available=GIB // 512)
    volume = reconstruct_frames(frames(8, 96, 4), iterations=1, length=4, step=4)
    assert volume.shape == (8, 96, 96)
    with pytest.raises(ValueError, match=r"8 slices .* need .*work 0\.00.* share the slices among \d or more workers"):
        reconstruct_frames(frames(8, 96, 4), iterations=1, length=4, step=4, algorithm="tv")


def test_the_history_of_the_axis_search_counts(limits):
    limits(available=GIB)
    check_memory(4, Task(columns=512, window=32))
    with pytest.raises(ValueError, match=r"history 1\.00\).* less --history"):
        check_memory(4, Task(columns=512, window=32, history=GIB))


def test_the_axis_of_each_slice_has_weights_of_its_own():
    alike, apart = (
        memory_needed(16, Task(columns=512, window=32, axis_per_slice=apart)).weights for apart in (False, True)
    )
    assert apart == 16 * alike


def test_a_gpu_is_asked_for_its_own_memory(limits, monkeypatch, tmp_path):
    limits(available=24 * GIB)
    monkeypatch.setitem(sys.modules, "aps_mini_apps.sirt.projectors.cuda", cuda_on_cpu.load(monkeypatch, tmp_path))
    task = Task(columns=2048, window=32, backend="cuda")
    assert memory_available("cuda") == cuda_on_cpu.FREE
    check_memory(32, task)
    with pytest.raises(ValueError, match=r"1\.00 GiB are free on the GPU: share the slices among 2 or more"):
        check_memory(64, task)
    check_memory(64, Task(columns=2048, window=32, backend="cuda", half=True))


def test_what_parts_hold_adds_up():
    assert Held(volumes=1, geometries=2) + Held(volumes=0.5, sinograms=1) == Held(
        volumes=1.5, sinograms=1, geometries=2
    )
