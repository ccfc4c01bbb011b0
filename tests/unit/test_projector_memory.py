"""A slab that does not fit is refused, with the sum and the way out."""

import re

import pytest

from aps_mini_apps.sirt.projectors import make_projector, memory
from aps_mini_apps.sirt.projectors.memory import check_memory, memory_available, memory_needed

GIB = 2**30


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
    assert memory_needed(slices, columns, 1).volume == pytest.approx(held, rel=0.05)  # padding differs by a pixel


def test_what_fits_passes_and_what_does_not_names_sum_and_workers(limits):
    limits(available=24 * GIB)
    check_memory(512, 2048, 32)
    with pytest.raises(
        ValueError, match=r"2048 slices of 2048 x 2048 pixels need .*volume 32\.\d\d, copy 32"
    ) as refused:
        check_memory(2048, 2048, 32)
    workers = int(re.search(r"among (\d+) or more workers", str(refused.value))[1])
    check_memory(-(-2048 // workers), 2048, 32)
    with pytest.raises(ValueError, match="need"):
        check_memory(-(-2048 // (workers - 1)), 2048, 32)


def test_a_single_slice_too_many_has_no_workers_to_offer(limits):
    limits(available=GIB // 64)
    with pytest.raises(ValueError, match="not even one slice fits"):
        check_memory(4, 4096, 1)


def test_the_containers_limit_counts(limits):
    limits(available=24 * GIB, limit=4 * GIB, used=GIB, files=2 * GIB)
    assert memory_available() == 3 * GIB
    with pytest.raises(ValueError, match=r"3\.00 GiB are free"):
        check_memory(512, 2048, 32)


def test_no_limit_and_an_unknown_system_refuse_nothing(limits):
    assert memory_available() is None
    check_memory(2048, 2048, 32)
    limits(available=24 * GIB, limit="max")
    assert memory_available() == 24 * GIB
