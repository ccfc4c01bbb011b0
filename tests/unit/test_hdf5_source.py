"""HDF5 files as sources: every fallback, every pixel type, every complaint, and memory that stays bounded."""

import subprocess
import sys
import textwrap
from itertools import pairwise
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from aps_mini_apps.daq import hdf5
from aps_mini_apps.daq.hdf5 import open_scan
from ministream.base.errors import UserError

COUNT, ROWS, COLUMNS = 12, 4, 7
FLAT_VALUE = "process/acquisition/flat_fields/flat_field_value"
DARK_VALUE = "process/acquisition/dark_fields/dark_field_value"
ROTATION = "process/acquisition/rotation"


def counts(count=COUNT, dtype=np.uint16, seed=0):
    random = np.random.default_rng(seed)
    return random.integers(1, 100, (count, ROWS, COLUMNS)).astype(dtype)


def complete(**changes):
    """Return the datasets of a whole scan by path; a change to None leaves one out."""
    content = {
        "exchange/data": counts(),
        "exchange/data_white": counts(3, seed=1),
        "exchange/data_dark": counts(2, seed=2),
        "exchange/theta": np.arange(COUNT) * 15.0,
    }
    content |= {name.replace("__", "/"): value for name, value in changes.items()}
    return {name: value for name, value in content.items() if value is not None}


@pytest.fixture
def write(tmp_path):
    """Write datasets to a file and return its path."""

    def write(content, **options):
        path = tmp_path / "scan.h5"
        with h5py.File(path, "w") as file:
            for name, value in content.items():
                file.create_dataset(name, data=value, **(options if np.ndim(value) == 3 else {}))
        return path

    return write


def stack(frames):
    return np.stack(list(frames))


def complaint(path, **options):
    with pytest.raises(UserError) as caught, open_scan(path, **options) as source:
        list(source.projections(range(len(source.angles))))
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


# What a complete file holds


def test_a_whole_scan(write):
    content = complete()
    with open_scan(write(content)) as source:
        assert (source.name, source.rows, source.columns, source.center) == ("scan.h5", ROWS, COLUMNS, None)
        assert (source.flat_count, source.dark_count) == (3, 2)
        np.testing.assert_allclose(source.angles, np.deg2rad(content["exchange/theta"]), rtol=1e-15)
        np.testing.assert_array_equal(stack(source.flats()), content["exchange/data_white"])
        np.testing.assert_array_equal(stack(source.darks()), content["exchange/data_dark"])
        np.testing.assert_array_equal(stack(source.projections(range(COUNT))), content["exchange/data"])


def test_part_of_a_scan(write):
    content = complete()
    part = {"rows": slice(1, 3), "columns": slice(2, None), "projections": slice(4, 9)}
    with open_scan(write(content), **part) as source:
        assert (source.rows, source.columns) == (2, 5)
        np.testing.assert_allclose(source.angles, np.deg2rad(content["exchange/theta"][4:9]))
        np.testing.assert_array_equal(stack(source.flats()), content["exchange/data_white"][:, 1:3, 2:])
        np.testing.assert_array_equal(stack(source.projections([4, 0])), content["exchange/data"][[8, 4], 1:3, 2:])


def test_another_exchange_group(write):
    content = complete(exchange1__data=counts(seed=5), exchange1__data_white=counts(1, seed=6))
    content |= {"exchange1/data_dark": counts(1, seed=7), "exchange1/theta": np.arange(COUNT) * 30.0}
    with open_scan(write(content), exchange="exchange1") as source:
        np.testing.assert_array_equal(stack(source.projections(range(COUNT))), content["exchange1/data"])
        assert source.angles[1] == pytest.approx(np.pi / 6)


@pytest.mark.parametrize(
    "dtype", ["u1", "<i1", "<u2", ">u2", ">i2", "<u4", ">i4", "<u8", ">i8", "<f2", ">f2", "<f4", ">f4", "<f8", ">f8"]
)
def test_every_pixel_type_comes_in_native_order(write, dtype):
    data = counts(dtype=dtype)
    with open_scan(write(complete(exchange__data=data))) as source:
        frames = stack(source.projections(range(COUNT)))
    assert frames.dtype == np.dtype(dtype).newbyteorder("=")
    assert frames.dtype.isnative
    np.testing.assert_array_equal(frames, data)


@pytest.mark.parametrize(
    "packed",
    [
        {"compression": "gzip"},
        hdf5plugin.Blosc(cname="zstd"),
        hdf5plugin.LZ4(),
        hdf5plugin.Zstd(),
        hdf5plugin.Bitshuffle(),
    ],
    ids=lambda packed: type(packed).__name__,
)
def test_compressed_files(write, packed):
    content = complete()
    with open_scan(write(content, **packed)) as source:
        np.testing.assert_array_equal(stack(source.projections(range(COUNT))), content["exchange/data"])


def test_invalid_pixels_pass(write):
    data = counts(dtype=np.float32)
    data[3, 1, 2], data[4, 0, 0] = np.nan, np.inf
    with open_scan(write(complete(exchange__data=data))) as source:
        np.testing.assert_array_equal(stack(source.projections(range(COUNT))), data)


@pytest.mark.parametrize("shape", [(COUNT, 1), (1, COUNT), (COUNT,)])
def test_angles_of_any_shape(write, shape):
    theta = np.linspace(0, 360, COUNT, dtype=">f4")
    with open_scan(write(complete(exchange__theta=theta.reshape(shape)))) as source:
        np.testing.assert_allclose(source.angles, np.deg2rad(theta.astype(float)))


@pytest.mark.parametrize("units", ["rad", "Radians", b"rad", np.array([b"rad"])])
def test_angles_in_radians_where_the_file_says_so(write, units):
    path = write(complete(exchange__theta=np.linspace(0, 3, COUNT)))
    with h5py.File(path, "a") as file:
        file["exchange/theta"].attrs["units"] = units
    with open_scan(path) as source:
        np.testing.assert_array_equal(source.angles, np.linspace(0, 3, COUNT))


@pytest.mark.parametrize("units", ["deg", "degrees", "°", b"\xb0", ""])
def test_angles_in_degrees_otherwise(write, units):
    path = write(complete())
    with h5py.File(path, "a") as file:
        file["exchange/theta"].attrs["units"] = units
    with open_scan(path) as source:
        assert source.angles[6] == pytest.approx(np.pi / 2)


def test_the_tooth(shared_data):
    with open_scan(shared_data / "tooth.h5") as source:
        assert (source.rows, source.columns, len(source.angles)) == (2, 640, 181)
        # 0 to 179 degrees, as the file says: its 181 steps are 179/180 of a degree
        np.testing.assert_allclose(np.rad2deg(source.angles[[0, 1, -1]]), [0, 0.99447514, 179.00552486], atol=1e-7)
        assert (source.flat_count, source.dark_count) == (10, 10)
        frame = next(source.projections([180]))
        assert frame.dtype == np.float32
        assert 0 < frame.mean() < next(source.flats()).mean()


# Fallbacks


@pytest.mark.parametrize("flats", [None, np.zeros((1, ROWS, COLUMNS), np.uint16)], ids=["missing", "all zero"])
@pytest.mark.parametrize(
    ("dtype", "value", "expected"), [("u2", 40_000.0, "u2"), (">f8", 1.5, "f8"), ("u2", 0.5, "f4"), ("u1", 300, "f4")]
)
def test_flats_from_their_scalar(write, flats, dtype, value, expected):
    changes = {"exchange__data": counts(dtype=dtype), "exchange__data_white": flats}
    with open_scan(write(complete(**changes) | {FLAT_VALUE: np.array([value])})) as source:
        assert source.flat_count == 1
        (flat,) = source.flats()
    assert flat.shape == (ROWS, COLUMNS)
    assert flat.dtype == expected
    assert (flat == value).all()


@pytest.mark.parametrize("darks", [None, np.zeros((1, ROWS, COLUMNS), np.uint16)], ids=["missing", "all zero"])
@pytest.mark.parametrize("value", [0, 12])
def test_darks_from_their_scalar(write, darks, value):
    with capture_logs() as logs, open_scan(write(complete(exchange__data_dark=darks) | {DARK_VALUE: value})) as source:
        (dark,) = source.darks()
    assert (dark == value).all()
    assert not logs


def test_a_constant_frame_may_be_changed_by_who_takes_it(write):
    with open_scan(write(complete(exchange__data_white=None) | {FLAT_VALUE: 9})) as source:
        next(source.flats())[:] = 0
        assert (next(source.flats()) == 9).all()


def test_no_darks_are_zero_darks_with_a_warning(write):
    path = write(complete(exchange__data_dark=None))
    with capture_logs() as logs, open_scan(path) as source:
        (dark,) = source.darks()
    assert not dark.any()
    assert [entry["log_level"] for entry in logs] == ["warning"]
    assert str(path) in logs[0]["file"]


def test_angles_from_start_and_step(write):
    rotation = {f"{ROTATION}/rotation_start": [10.0], f"{ROTATION}/rotation_step": [0.5]}
    with capture_logs() as logs, open_scan(write(complete(exchange__theta=None) | rotation)) as source:
        np.testing.assert_allclose(source.angles, np.deg2rad(10 + 0.5 * np.arange(COUNT)))
    assert not logs


def test_a_wrong_number_of_angles_is_reported(write):
    rotation = {"rotation_start": 0, "rotation_step": 1, "num_angles": 99}
    content = complete(exchange__theta=None) | {f"{ROTATION}/{name}": value for name, value in rotation.items()}
    with capture_logs() as logs, open_scan(write(content)) as source:
        assert len(source.angles) == COUNT
    assert (logs[0]["stated"], logs[0]["count"]) == (99, COUNT)


def test_angles_from_nothing_are_equal_steps_with_a_warning(write):
    with capture_logs() as logs, open_scan(write(complete(exchange__theta=None))) as source:
        np.testing.assert_allclose(source.angles, np.linspace(0, np.pi, COUNT))
    assert "180 degrees" in logs[0]["event"]


# Complaints


def test_no_file_a_folder_no_hdf5(tmp_path):
    assert "no such file" in complaint(tmp_path / "absent.h5")
    assert "folder" in complaint(tmp_path)
    text = tmp_path / "notes.txt"
    text.write_text("not pixels")
    assert "not an HDF5 file" in complaint(text)


def test_a_truncated_file(write):
    path = write(complete(exchange__data=counts(2000)))
    path.write_bytes(path.read_bytes()[:20_000])
    assert "cannot be read" in complaint(path)


def test_a_damaged_chunk_is_named_when_it_is_met(write):
    path = write(complete(), compression="gzip", chunks=(1, ROWS, COLUMNS))
    with h5py.File(path) as file:
        chunk = file["exchange/data"].id.get_chunk_info(5)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    path.write_bytes(content)
    with open_scan(path) as source:
        list(source.projections([0, 1, 2, 3, 4]))  # what is whole is read
        with pytest.raises(UserError, match=r"frames 5 to 5 of /exchange/data cannot be read"):
            list(source.projections([5]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"exchange__data": None}, ["/exchange/data", "data_white, theta"]),
        ({"exchange__data": np.ones((ROWS, COLUMNS))}, ["(4, 7)", "(frames, rows, columns)"]),
        ({"exchange__data": np.ones((0, ROWS, COLUMNS))}, ["is empty", "(0, 4, 7)"]),
        ({"exchange__data": h5py.Empty("f4")}, ["(frames, rows, columns)"]),
        ({"exchange__data": counts(dtype=complex)}, ["complex128"]),
        ({"exchange__data": counts(dtype="S3")}, ["|S3"]),
        ({"exchange__data": counts(dtype=bool)}, ["bool"]),
        ({"exchange__data_white": np.ones((3, ROWS, COLUMNS + 1))}, ["data_white", "(4, 8)", "(4, 7)"]),
        ({"exchange__data_dark": np.ones((3, ROWS + 1, COLUMNS))}, ["data_dark", "(5, 7)", "(4, 7)"]),
        ({"exchange__data_white": np.ones((ROWS, COLUMNS))}, ["data_white", "(frames, rows, columns)"]),
        ({"exchange__data_white": None}, ["data_white is missing", "flat_field_value"]),
        ({"exchange__data_white": np.zeros((3, ROWS, COLUMNS))}, ["data_white is all zero", "flat_field_value"]),
        ({"exchange__data_white": None, FLAT_VALUE: 0}, ["data_white is missing"]),
        ({"exchange__data_white": None, FLAT_VALUE: b"bright"}, ["flat_field_value", "numbers"]),
        ({"exchange__data_white": None, FLAT_VALUE: np.nan}, ["flat_field_value", "finite"]),
        ({"exchange__data_dark": np.zeros((3, ROWS, COLUMNS))}, ["data_dark is all zero", "dark_field_value"]),
        ({"exchange__theta": np.arange(COUNT + 1)}, ["theta", "13 angles for 12 projections"]),
        ({"exchange__theta": np.full(COUNT, np.nan)}, ["theta", "not finite"]),
        ({"exchange__theta": [b"zero"] * COUNT}, ["theta", "must be numbers"]),
    ],
)
def test_unusable_content(write, changes, words):
    text = complaint(write(complete(**changes)))
    for word in words:
        assert word in text


def test_an_absent_exchange_group_names_those_present(write):
    path = write(complete(exchange1__data=counts()))
    assert "exchange, exchange1 by --exchange" in complaint(path, exchange="exchange3")


def test_a_file_of_another_layout_names_what_it_holds(write):
    assert "it holds entry" in complaint(write({"entry/image": counts()}))


@pytest.mark.parametrize("rows", [slice(2, 5), slice(4, None), slice(3, 3), slice(-1, None), slice(0, 4, 2)])
def test_rows_beyond_the_detector_name_the_rows_present(write, rows):
    assert "it has rows 0 to 3" in complaint(write(complete()), rows=rows)


def test_a_file_that_was_refused_is_closed(write):
    path = write(complete(exchange__data_white=None))
    complaint(path)
    with h5py.File(path, "a"):  # fails while anyone else has it open
        pass


# How it is read


@settings(deadline=None)
@given(order=st.lists(st.integers(0, 60)), block=st.integers(1, 20))
def test_runs_cover_the_order_and_cross_no_block(order, block):
    runs = list(hdf5._runs(order, block))
    assert [index for begin, end in runs for index in range(begin, end)] == order
    assert all(begin // block == (end - 1) // block for begin, end in runs)


def test_neighbours_are_read_together_along_whole_chunks(write, monkeypatch):
    monkeypatch.setattr(hdf5, "BLOCK_BYTES", 7 * ROWS * COLUMNS * 2)
    path = write(complete(exchange__data=counts(20), exchange__theta=np.arange(20)), chunks=(2, ROWS, COLUMNS))
    with open_scan(path) as source:
        assert source._projections._block == 6  # three chunks of two, not seven frames
        frames = list(source.projections(range(20)))
    shared = [b for a, b in pairwise(frames) if np.shares_memory(a.base, b.base)]
    assert len(shared) == 20 - 4  # four reads: 6 + 6 + 6 + 2


def test_a_scan_of_50_gb_takes_little_memory_and_starts_at_once(tmp_path):
    path = tmp_path / "sparse.h5"
    with h5py.File(path, "w") as file:  # chunks that were never written take no room and read as zero
        file.create_dataset("exchange/data", (20_000, 1024, 1280), "u2", chunks=(1, 1024, 1280))
        file.create_dataset("exchange/data_white", data=np.ones((1, 1024, 1280), "u2"))
        file.create_dataset("exchange/theta", data=np.linspace(0, 180, 20_000))
    assert path.stat().st_size < 10e6
    program = """
        import resource, sys, time
        from aps_mini_apps.daq.hdf5 import open_scan

        def peak():  # KiB
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        before, began = peak(), time.process_time()
        with open_scan(sys.argv[1]) as source:
            frames = source.projections(range(len(source.angles)))
            next(frames)
            print("seconds", time.process_time() - began)
            for _ in range(400):
                next(frames)
        print("mib", (peak() - before) / 1024)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    said = dict(line.split() for line in result.stdout.splitlines() if line.startswith(("seconds", "mib")))
    assert float(said["seconds"]) < 2.0
    assert float(said["mib"]) < 150  # of the 1000 MiB that were read
