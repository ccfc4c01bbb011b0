"""Bad input: one clear line, a non-zero exit, and earlier output intact."""

import re
import socket
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.integration.conftest import Start

THETA = np.linspace(0, 180, 20)


def scan(path: Path, *, drop: tuple[str, ...] = (), **datasets: object) -> Path:
    """Write a small sound scan with some of its datasets replaced or left out."""
    content: dict[str, object] = {
        "exchange/data": np.full((20, 4, 32), 500, np.uint16),
        "exchange/data_white": np.full((2, 4, 32), 1000, np.uint16),
        "exchange/data_dark": np.full((2, 4, 32), 100, np.uint16),
        "exchange/theta": THETA,
    }
    content |= {f"exchange/{name}": value for name, value in datasets.items()}
    with h5py.File(path, "w") as file:
        for name, value in content.items():
            if name.removeprefix("exchange/") not in drop:
                file[name] = value
    return path


def not_hdf5(path: Path) -> Path:
    path.write_text("not a scan")
    return path


CASES: dict[str, tuple[Callable[[Path], Path] | None, tuple[str, ...], str]] = {
    "no such file": (lambda p: p, (), r"bad.h5: no such file; give the path"),
    "not HDF5": (not_hdf5, (), r"bad.h5 is not an HDF5 file"),
    "no data": (lambda p: scan(p, drop=("data",)), (), r"no dataset /exchange/data; /exchange holds"),
    "shapes disagree": (lambda p: scan(p, data_white=np.ones((2, 4, 31))), (), r"\(4, 31\).*\(4, 32\).*must agree"),
    "flats all zero": (lambda p: scan(p, data_white=np.zeros((2, 4, 32))), (), r"data_white is all zero"),
    "darks all zero": (lambda p: scan(p, data_dark=np.zeros((2, 4, 32))), (), r"data_dark is all zero"),
    "flats no brighter than darks": (
        lambda p: scan(p, data_white=np.full((2, 4, 32), 100, np.uint16)),
        (),
        r"the flats are .*: check that",
    ),
    "angles not numbers": (lambda p: scan(p, theta=[b"a"] * 20), (), r"theta holds values of type .* must be numbers"),
    "angles not finite": (lambda p: scan(p, theta=np.full(20, np.nan)), (), r"theta .* not finite"),
    "angles missing": (lambda p: scan(p, theta=THETA[:5]), (), r"5 angles for 20 projections"),
    "centre outside": (scan, ("--center", "40"), r"centre 40 lies outside the detector: .* 0 and 32 columns"),
    "centre no number": (scan, ("--center", "left"), r"command line: center: "),
    "rows outside": (scan, ("--first-row", "2", "--rows", "4"), r"rows 2 to 5 .*rows 0 to 3"),
    "more workers than rows": (scan, ("--center", "16", "--workers", "5"), r"5 workers cannot share 4 rows"),
    "unknown exchange": (scan, ("--exchange", "exchange7"), r"exchange7/data; choose one of exchange"),
    "window of nothing": (scan, ("--window-length", "0"), r"window_length: .*greater than or equal to 1"),
}


@pytest.mark.parametrize("name", CASES)
def test_ministream_run_says_what_is_wrong(start: Start, tmp_path: Path, name: str) -> None:
    make, options, message = CASES[name]
    earlier = tmp_path / "output" / "000000-recon.h5"
    earlier.parent.mkdir()
    with h5py.File(earlier, "w") as file:
        file.attrs["scan"] = "earlier"
    before = earlier.read_bytes()
    path = make(tmp_path / "bad.h5") if make else tmp_path / "bad.h5"
    run = start("run", path, *options)
    assert run.finish() == 2
    assert earlier.read_bytes() == before
    pattern = re.compile(message)
    last = run.errors[-1]
    assert pattern.search(last), last
    assert "\n" not in last
    assert not any("Traceback" in str(event) for event in run.events)


def test_an_output_folder_that_cannot_be_made(start: Start, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = start("run", scan(tmp_path / "scan.h5"), "--output", tmp_path / "file" / "out")
    assert run.finish() == 2
    assert "output folder" in run.errors[-1]
    assert "cannot be written: Not a directory" in run.errors[-1]


@pytest.mark.parametrize(
    "command",
    [
        ("daq", "--source", "phantom", "--columns", "16", "--rows", "2", "--projections", "4", "--bind"),
        ("daq", "--mode", "2", "--synch_count", "1", "--publisher_addr"),
        ("dist", "--bind"),
        ("dist", "--data_source_addr", "tcp://127.0.0.1:9", "--my_distributor_addr"),
        ("sirt", "--pub-addr"),
    ],
)
def test_a_port_in_use_is_named(start: Start, command: tuple[str, ...]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        endpoint = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        program = start(*command, endpoint)
        assert program.finish() == 2
        assert endpoint in program.errors[-1]
        assert "in use" in program.errors[-1]


@pytest.mark.parametrize("option", ["--source", "--dest-host"])
def test_a_distributor_that_never_answers_is_named_after_the_stated_time(start: Start, option: str) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = str(silent.getsockname()[1])
        endpoint = f"tcp://127.0.0.1:{port}"
        where = (option, endpoint) if option == "--source" else ("--dest-host", "127.0.0.1", "--dest-port", port)
        program = start("sirt", *where, "--timeout", "0.5", "--pub-addr", "")
        assert program.finish() == 2
        assert endpoint in program.errors[-1]
        assert "0.5 s" in program.errors[-1]


def test_a_wrong_option_is_refused_with_the_nearest_one(start: Start) -> None:
    program = start("dist", "--num-sinogram", "3")
    assert program.finish() == 2
    assert "--num-sinograms" in "".join(map(str, program.events))
