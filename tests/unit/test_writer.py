"""Output files: layout, atomic writing, full disks, slabs of several workers, and earlier scans."""

import os
import resource
import signal
import stat
from pathlib import Path

import h5py
import numpy as np
import pytest

from aps_mini_apps.frames import RowRange
from aps_mini_apps.sirt.writer import ReconstructionWriter, check_writable, write_volume
from ministream.base.errors import UserError

ALL = RowRange(start=0, stop=3, total=3)
RNG = np.random.default_rng(5)


def volume(slices: int = 3, size: int = 8) -> np.ndarray:
    return RNG.random((slices, size, size), dtype=np.float32)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_holds_the_volume_its_attributes_and_the_monitor(tmp_path: Path) -> None:
    data = volume()
    writer = ReconstructionWriter(tmp_path, "scan-1")
    path = writer.write(7, data, ALL, {"center": 4.5, "frames_lost": 0}, {"misfit": np.array([0.5, 0.25])})
    assert names(tmp_path) == ["000007-recon.h5"]
    with h5py.File(path) as file:
        assert file["data"].dtype == np.dtype("<f4")
        np.testing.assert_array_equal(file["data"][()], data)
        assert dict(file.attrs) == {
            "scan": "scan-1",
            "window": 7,
            "first_row": 0,
            "total_rows": 3,
            "center": 4.5,
            "frames_lost": 0,
        }
        np.testing.assert_array_equal(file["monitor/misfit"][()], [0.5, 0.25])


@pytest.mark.parametrize("dataset", ["/data", "exchange/recon", "/a/b/c"])
def test_the_dataset_may_have_any_path(tmp_path: Path, dataset: str) -> None:
    data = volume()[:, ::2, ::2]  # not contiguous
    ReconstructionWriter(tmp_path, "s", dataset=dataset).write(0, data, ALL, {})
    with h5py.File(tmp_path / "000000-recon.h5") as file:
        np.testing.assert_array_equal(file[dataset][()], data)


def test_the_same_window_again_replaces_the_file_in_one_step(tmp_path: Path) -> None:
    writer = ReconstructionWriter(tmp_path, "s")
    path = writer.write(0, volume(), ALL, {})
    with h5py.File(path) as reader:  # a reader that has it open keeps the old one
        before = reader["data"][()]
        newer = volume()
        writer.write(0, newer, ALL, {})
        np.testing.assert_array_equal(reader["data"][()], before)
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["data"][()], newer)


def test_slabs_of_two_workers_are_joined_by_the_one_that_is_last(tmp_path: Path) -> None:
    data = volume(5)
    slabs = [RowRange(start=0, stop=3, total=5), RowRange(start=3, stop=5, total=5)]
    for rows in reversed(slabs):
        assert not (tmp_path / "000004-recon.h5").exists()
        ReconstructionWriter(tmp_path, "s").write(4, data[rows.start : rows.stop], rows, {"center": 4.0})
    with h5py.File(tmp_path / "000004-recon.h5") as file:
        np.testing.assert_array_equal(file["data"][()], data)
        assert (file.attrs["first_row"], file.attrs["total_rows"], file.attrs["center"]) == (0, 5, 4.0)


def test_files_of_an_earlier_scan_are_moved_aside_and_never_mixed(tmp_path: Path) -> None:
    old = volume()
    ReconstructionWriter(tmp_path, "old/scan").write(3, old, ALL, {})
    (tmp_path / "notes.txt").write_text("mine")
    writer = ReconstructionWriter(tmp_path, "new")
    assert names(tmp_path) == ["000003-recon.h5", "notes.txt"]  # nothing moves before there is a new file
    writer.write(0, volume(), ALL, {})
    writer.write(1, volume(), ALL, {})
    assert names(tmp_path) == ["000000-recon.h5", "000001-recon.h5", "earlier", "notes.txt"]
    with h5py.File(tmp_path / "earlier" / "old_scan" / "000003-recon.h5") as file:
        np.testing.assert_array_equal(file["data"][()], old)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"output folder .*/file/below cannot be written: Not a directory"):
        check_writable(tmp_path / "file" / "below")


def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    pid = os.fork()
    if pid == 0:  # in a child that is not root, whoever runs the tests
        try:
            tmp_path.chmod(0o755)
            closed.chmod(stat.S_IRUSR | stat.S_IXUSR)
            if os.getuid() == 0:
                os.setuid(65534)
            check_writable(closed)
        except UserError as error:
            os._exit(0 if "cannot be written: Permission denied" in str(error) else 2)
        except BaseException:
            os._exit(3)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_disk_without_room_is_an_error_and_leaves_earlier_files_whole(tmp_path: Path) -> None:
    """A limit on the size of a file stands for the full disk: blocks cannot be reserved either way."""
    writer = ReconstructionWriter(tmp_path, "s")
    small = volume()
    writer.write(0, small, ALL, {})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*000001-recon.h5: File too large; .* intact"):
            writer.write(1, volume(3, 128), ALL, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert names(tmp_path) == ["000000-recon.h5"]
    with h5py.File(tmp_path / "000000-recon.h5") as file:
        np.testing.assert_array_equal(file["data"][()], small)


def test_a_writer_that_is_killed_leaves_no_half_file(tmp_path: Path) -> None:
    """Killed at any moment, what stands under the final name is whole."""
    for attempt in range(8):
        pid = os.fork()
        if pid == 0:
            writer = ReconstructionWriter(tmp_path, "s")
            big = np.ones((4, 512, 512), np.float32)
            window = 0
            while True:
                writer.write(window, big, RowRange(start=0, stop=4, total=4), {})
                window += 1
        while not (tmp_path / f"{attempt:06d}-recon.h5").exists():
            pass
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        for path in tmp_path.glob("[0-9]*.h5"):
            with h5py.File(path) as file:
                assert file["data"][()].min() == 1.0
            path.unlink() if path.name > f"{attempt:06d}-recon.h5" else None


def test_a_single_file_can_be_written_anywhere(tmp_path: Path) -> None:
    data = volume()
    write_volume(tmp_path / "last.h5", "/data", data, {"state": "complete"}, {})
    with h5py.File(tmp_path / "last.h5") as file:
        np.testing.assert_array_equal(file["data"][()], data)
        assert file.attrs["state"] == "complete"
