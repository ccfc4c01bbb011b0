"""Hostile strangers and unlucky operators: a program serves the next good message, or ends with one clear line."""

import contextlib
import itertools
import os
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import zmq

from aps_mini_apps import batch
from aps_mini_apps.daq.phantom import PhantomSource
from aps_mini_apps.frames import Frame, FrameKind, RowRange, Volume
from aps_mini_apps.quality.measures import compare
from aps_mini_apps.wire import note, timage
from tests.integration.conftest import PATIENCE, Program, Start

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="children are found in /proc")

LONG = (
    *("run", "--columns", "32", "--rows", "2", "--projections", "5000", "--frame-rate", "50"),
    *("--center", "19", "--backend", "numpy", "--no-remove-stripes"),
)
"""A scan of 100 s: whoever ends it sooner did so for another reason."""

SOON = 12.0
"""Seconds: a child gets 10 to write its last file before it is killed."""


def children(parent: int) -> dict[str, int]:
    """Return program name -> process number of the programs that `parent` started."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                found[words[3].decode()] = int(entry.name)  # python -m ministream PROGRAM
    return found


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def all_gone(processes: list[int], limit: float) -> bool:
    deadline = time.monotonic() + limit
    while any(map(is_alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(is_alive, processes))


def states(folder: Path) -> list[str]:
    """Return the state of every file in `folder`; each must be whole, and nothing unfinished lie beside them."""
    assert not list(folder.glob(".*"))
    found = []
    for path in sorted(folder.glob("*.h5")):
        with h5py.File(path) as file:
            assert np.isfinite(file["data"][()]).all()
            found.append(str(file.attrs["state"]))
    return found


def no_traceback(program: Program) -> bool:
    return not any("Traceback" in str(event) or "internal fault" in event["event"] for event in program.events)


def until_written(run: Program) -> None:
    """Read the log until a worker has written its first file."""
    while run.wait_for("file written")["service"] != "sirt":
        pass


@needs_proc
@pytest.mark.parametrize("victim", ["daq", "dist", "sirt"])
def test_a_killed_program_ends_the_run_by_name(start: Start, tmp_path: Path, victim: str) -> None:
    run = start(*LONG)
    until_written(run)
    programs = children(run.process.pid)
    assert set(programs) == {"daq", "dist", "sirt"}
    os.kill(programs[victim], signal.SIGKILL)
    began = time.monotonic()
    assert run.finish() == 2
    assert time.monotonic() - began < SOON
    assert run.errors[-1].startswith(f"{victim} failed: ended by signal 9 (Killed")
    assert all_gone(list(programs.values()), 0.0)
    written = states(tmp_path / "output")
    if victim == "sirt":
        assert written == ["in progress"]
    else:  # the last window is kept, and says what happened
        assert written[-1] == "SIGTERM"
        assert written[:-1] in ([], ["in progress"])
    assert no_traceback(run)


@needs_proc
@pytest.mark.parametrize("event", ["listening", "file written"])
def test_the_programs_of_a_killed_run_end_by_themselves(start: Start, tmp_path: Path, event: str) -> None:
    """Also those that wait and say nothing: no closed pipe tells them."""
    slowly = ("--frame-rate", "0.02", "--timeout", "0")
    run = start(*LONG, *(slowly if event == "listening" else ()))
    run.wait_for(event)
    programs = list(children(run.process.pid).values())
    assert programs
    run.process.kill()
    assert all_gone(programs, 30.0)
    states(tmp_path / "output")


@needs_proc
def test_a_closed_output_ends_the_run_and_its_programs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ministream", *LONG]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as run:
        assert run.stdout is not None
        while b"file written" not in run.stdout.readline():
            pass
        programs = list(children(run.pid).values())
        run.stdout.close()
        assert run.wait(SOON) != 0
        assert run.stderr is not None
        assert b"Traceback" not in run.stderr.read()
    assert len(programs) == 3
    assert all_gone(programs, 30.0)


@pytest.mark.parametrize(
    ("number", "event"),
    [(signal.SIGINT, "kernels ready"), (signal.SIGTERM, "listening"), (signal.SIGINT, "scan started")],
)
def test_a_signal_ends_a_run_at_any_stage(start: Start, number: signal.Signals, event: str) -> None:
    run = start(*LONG)
    run.wait_for(event)
    programs = children(run.process.pid) if Path("/proc/self").exists() else {}
    began = time.monotonic()
    code = run.finish(stop=number)
    assert time.monotonic() - began < SOON
    assert code in (130, -signal.SIGTERM)  # nothing to end in order yet: SIGTERM simply ends it
    assert all_gone(list(programs.values()), 0.0)
    assert no_traceback(run)


def test_ctrl_c_interrupts_the_search_for_the_axis(start: Start, tmp_path: Path) -> None:
    """The search over a scan of 300 MB is cut off, not waited for."""
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file.create_dataset("exchange/data", (20_000, 16, 512), np.uint16, fillvalue=500)  # takes no room on the disk
        file["process/acquisition/flat_fields/flat_field_value"] = 1000
    run = start("run", tmp_path / "scan.h5")
    run.wait_for("no angles in the file: equal steps from 0 to 180 degrees are taken")
    began = time.monotonic()
    assert run.finish(stop=signal.SIGINT) == 130
    assert time.monotonic() - began < 20.0  # the compiler is not interrupted
    assert run.events[-1]["event"] == "stopped"


# ---- rubbish on live sockets


PIXELS = (4, 16)


def frame(sequence: int, **changes: object) -> Frame:
    values = {
        "kind": FrameKind.PROJECTION,
        "pixels": np.full(PIXELS, 0.5, np.float32),
        "sequence": sequence,
        "number": sequence,
        "angle": 0.1 * sequence,
        "center": 8.0,
        "scan": "s",
    }
    return Frame(**{**values, **changes})  # type: ignore[arg-type]


def message(sequence: int, **changes: object) -> bytes:
    return bytes(timage.encode(frame(sequence, **changes)))


def with_nan_angle() -> bytes:
    """A frame as the APS mini-apps send it, with an angle that is no number; ours are sealed by a checksum."""
    sound = message(1, angle=1.0)
    return sound.replace(struct.pack("<d", 1.0), struct.pack("<d", float("nan")))


RUBBISH: list[bytes | list[bytes]] = [
    b"",
    b"x",
    np.random.default_rng(0).bytes(500),
    message(1)[:-5],
    message(1)[:40],
    struct.pack("<I", 0xFFFFFFFF) * 50,
    with_nan_angle(),
    [b"two", b"parts"],
    [message(1), b""],
    b"end_dat",
    bytes(timage.encode(Volume(data=np.zeros((1, 4, 4), np.float32)))),
]


OpenSocket = Callable[[int], "zmq.Socket[bytes]"]


@pytest.fixture
def open_socket() -> Iterator[OpenSocket]:
    """Open sockets that wait for no longer than a test may take; all are closed in the end."""
    with contextlib.ExitStack() as stack:
        context = stack.enter_context(zmq.Context())

        def make(kind: int) -> "zmq.Socket[bytes]":
            made = stack.enter_context(context.socket(kind))
            made.linger, made.rcvtimeo, made.sndtimeo = 0, int(1000 * PATIENCE), int(1000 * PATIENCE)
            return made

        yield make


def feed(messages: list[bytes | list[bytes]]) -> str:
    """Listen as a sender of the push link and send `messages` to whoever comes; return the endpoint."""
    context = zmq.Context()
    sender = context.socket(zmq.PUSH)
    sender.linger, sender.sndtimeo = 2000, int(1000 * PATIENCE)
    port = sender.bind_to_random_port("tcp://127.0.0.1")

    def send() -> None:
        for parts in messages:
            sender.send_multipart(parts if isinstance(parts, list) else [parts])
        sender.close()
        context.term()

    threading.Thread(target=send, daemon=True).start()
    return f"tcp://127.0.0.1:{port}"


def start_worker(start: Start, endpoint: str, *options: str) -> Program:
    where = ("--source", endpoint, "--pub-addr", "", "--backend", "numpy", "--timeout", "20", "--output", "out")
    return start("sirt", *where, *options)


def raw_bytes(endpoint: str) -> None:
    """Throw bytes at a listening socket that are no ZeroMQ, and a greeting that announces a huge message."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)
    ready = b"\x04\x1a\x05READY\x0bSocket-Type\x00\x00\x00\x04PULL"
    huge = b"\x02" + struct.pack(">Q", 2**62)
    for rubbish in (np.random.default_rng(1).bytes(2000), b"GET / HTTP/1.0\r\n\r\n", greeting + ready[:7] + huge):
        with socket.create_connection((host, int(port)), 10) as stranger:
            stranger.sendall(rubbish)


def test_a_live_distributor_outlives_rubbish(start: Start, open_socket: OpenSocket) -> None:
    counts = {"flat": 1000, "dark": 100, "projection": 550}
    flat, dark, projection = (np.full(PIXELS, value, np.uint16) for value in counts.values())
    frames = [
        message(0, kind=FrameKind.FLAT, pixels=flat, resets=True),
        message(1, kind=FrameKind.DARK, pixels=dark, resets=True),
        message(2, pixels=projection),
        message(3, pixels=projection),
    ]
    mixed = [part for sound in frames for part in (*RUBBISH, sound)]
    dist = start("dist", "--source", feed([*mixed, timage.END_OF_SCAN]), "--bind", "tcp://127.0.0.1:*")
    endpoint = dist.wait_for("listening")["endpoint"]
    raw_bytes(endpoint)
    worker = open_socket(zmq.PULL)
    worker.connect(endpoint)
    messages = itertools.filterfalse(note.is_note, iter(worker.recv, None))
    received = [timage.decode(next(messages), strict=True) for _ in range(2)]
    assert next(messages) == timage.END_OF_SCAN
    assert [value.number for value in received if isinstance(value, Frame)] == [2, 3]
    for value in received:
        assert isinstance(value, Frame)
        np.testing.assert_allclose(value.pixels, np.log(2), rtol=1e-6)
    assert dist.finish() == 0
    ended = dist.last("scan ended")
    assert (ended["refused"], ended["lost"]) == (len(RUBBISH) * len(frames), 0)


def test_a_live_worker_outlives_rubbish(start: Start, tmp_path: Path) -> None:
    nan = np.full(PIXELS, 0.5, np.float32)
    nan[0, 3] = np.nan
    frames = [message(k, **({"pixels": nan} if k == 5 else {})) for k in range(8)]
    mixed = [part for sound in frames for part in (*RUBBISH, sound)]
    worker = start_worker(start, feed([*mixed, timage.END_OF_SCAN]))
    assert worker.finish() == 0
    ended = worker.last("scan ended")
    assert (ended["received"], ended["lost"], ended["invalid_pixels"]) == (8, 0, 1)
    assert states(tmp_path / "out")[-1] == "complete"


SLAB = RowRange(start=4, stop=8, total=8)
INTRUDERS: dict[str, tuple[dict[str, object], str]] = {
    "columns": ({"pixels": np.ones((4, 15), np.float32)}, "15 columns, but the scan began with .* 16 columns"),
    "rows": ({"pixels": np.ones((3, 16), np.float32)}, "rows 0 to 2 .* but the scan began with rows 0 to 3"),
    "one row": ({"pixels": np.ones((1, 16), np.float32)}, "rows 0 to 0 .* but the scan began with rows 0 to 3"),
    "another slab": ({"rows": SLAB}, "rows 4 to 7 .* but the scan began with rows 0 to 3"),
    "another scan": ({"scan": "t"}, "scan 't' came in the middle of scan 's': .* start the programs behind it anew"),
    "a flat": ({"kind": FrameKind.FLAT}, "flat came where .* connect the worker to the distributor"),
    "centre": ({"center": 400.0}, "centre 400 lies outside the detector"),
}


@pytest.mark.parametrize("name", INTRUDERS)
def test_a_frame_that_does_not_belong_ends_a_worker_with_one_line(start: Start, tmp_path: Path, name: str) -> None:
    changes, reason = INTRUDERS[name]
    worker = start_worker(start, feed([message(0), message(1), message(2, **changes), message(3)]))
    assert worker.finish() == 2
    assert len(worker.errors) == 1
    assert re.search(reason, worker.errors[0]), worker.errors
    assert states(tmp_path / "out")  # what was reconstructed before is kept


@pytest.mark.parametrize("name", ["columns", "rows", "another scan"])
def test_a_frame_that_does_not_belong_ends_the_distributor_with_one_line(
    start: Start, open_socket: OpenSocket, name: str
) -> None:
    changes, reason = INTRUDERS[name]
    source = feed([message(0), message(1, **changes), message(2)])
    dist = start("dist", "--source", source, "--bind", "tcp://127.0.0.1:*", "--no-normalize")
    open_socket(zmq.PULL).connect(dist.wait_for("listening")["endpoint"])
    assert dist.finish() == 2
    assert len(dist.errors) == 1
    assert re.search(reason, dist.errors[0]), dist.errors


def test_a_second_receiver_ends_the_acquisition_with_one_line(start: Start, open_socket: OpenSocket) -> None:
    daq = start("daq", "--columns", "16", "--rows", "2", "--frame-rate", "50", "--bind", "tcp://127.0.0.1:*")
    endpoint = daq.wait_for("listening")["endpoint"]
    first, second = open_socket(zmq.PULL), open_socket(zmq.PULL)
    first.connect(endpoint)
    first.recv()
    second.connect(endpoint)
    assert daq.finish() == 2
    assert "second receiver" in daq.errors[-1]


# ---- disks


def become_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("")


LOSSES: dict[str, Callable[[Path], None]] = {"removed": shutil.rmtree, "a file": become_a_file}


@pytest.mark.parametrize("loss", LOSSES)
def test_an_output_folder_lost_in_mid_scan(start: Start, tmp_path: Path, open_socket: OpenSocket, loss: str) -> None:
    sender = open_socket(zmq.PUSH)
    port = sender.bind_to_random_port("tcp://127.0.0.1")
    worker = start_worker(start, f"tcp://127.0.0.1:{port}", "--write-freq", "4")
    sender.send(message(0))
    worker.wait_for("file written")
    LOSSES[loss](tmp_path / "out")
    for frame in (message(1), message(2), message(3), timage.END_OF_SCAN):
        sender.send(frame)
    assert worker.finish() == 2
    assert "cannot write out/000004-recon.h5: No" in worker.errors[-1]
    assert no_traceback(worker)


def test_a_folder_lost_before_the_first_window(start: Start, tmp_path: Path, open_socket: OpenSocket) -> None:
    sender = open_socket(zmq.PUSH)
    port = sender.bind_to_random_port("tcp://127.0.0.1")
    worker = start_worker(start, f"tcp://127.0.0.1:{port}")
    worker.wait_for("waiting for projections")
    (tmp_path / "out").rmdir()
    (tmp_path / "out").write_text("")
    sender.send(message(0))
    assert worker.finish() == 2
    assert "out" in worker.errors[-1]
    assert "cannot be written" in worker.errors[-1]
    assert no_traceback(worker)


def test_a_disk_that_fills_in_mid_scan_keeps_what_was_written(tmp_path: Path) -> None:
    """Files beyond a size stand for a full disk; the monitor in each file grows, so that a later one is refused."""
    frames = [message(k, pixels=np.ones((2, 64), np.float32)) for k in range(60)]
    endpoint = feed([*frames, timage.END_OF_SCAN])
    options = ("--source", endpoint, "--pub-addr", "", "--backend", "numpy", "--output", "out", "--write-freq", "1")
    run = subprocess.run(
        [sys.executable, "-m", "ministream", "sirt", *options],
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        timeout=PATIENCE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)),
    )
    assert run.returncode == 2
    assert "File too large; files written before are intact" in run.stdout
    assert "Traceback" not in run.stdout
    assert len(states(tmp_path / "out")) >= 2


def test_the_slabs_of_a_scan_stay_together_whatever_its_name(start: Start, tmp_path: Path) -> None:
    """One worker after the other: the second must not take the first one's file for another scan's."""
    for first in (0, 2):
        rows = RowRange(start=first, stop=first + 2, total=4)
        changes = {"scan": "tooth 1/2", "rows": rows, "pixels": np.ones((2, 16), np.float32)}
        worker = start_worker(start, feed([message(0, **changes), timage.END_OF_SCAN]))
        assert worker.finish() == 0
    with h5py.File(tmp_path / "out" / "000000-recon.h5") as file:
        assert file["data"].shape == (4, 16, 16)


# ---- odd scans


def write_scan(path: Path, source: PhantomSource, group: str = "exchange", **changes: object) -> Path:
    """Write the scan with some datasets replaced, or (None) left out; others go by their path."""
    frames: dict[str, object] = {
        f"{group}/data": np.stack(list(source.projections(range(len(source.angles))))),
        f"{group}/data_white": np.stack(list(source.flats())),
        f"{group}/data_dark": np.stack(list(source.darks())),
        f"{group}/theta": np.rad2deg(source.angles),
    }
    with h5py.File(path, "w") as file:
        for name, value in (frames | {k.replace("__", "/"): v for k, v in changes.items()}).items():
            if value is not None:
                file[name] = value
    return path


def holed(source: PhantomSource) -> np.ndarray:
    data = np.stack(list(source.projections(range(len(source.angles))))).astype(np.float32)
    data[np.random.default_rng(0).random(data.shape) < 0.01] = np.nan
    return data


def phantom(**options: object) -> PhantomSource:
    return PhantomSource(**{"columns": 64, "rows": 3, "projections": 90, "stripes": 0, **options})  # type: ignore[arg-type]


FLAT_VALUE = "process__acquisition__flat_fields__flat_field_value"
VARIANTS: dict[str, Callable[[Path], tuple[PhantomSource, Path]]] = {
    "uint16": lambda p: (s := phantom(), write_scan(p, s)),
    "no darks": lambda p: (s := phantom(), write_scan(p, s, exchange__data_dark=None)),
    "no theta": lambda p: (s := phantom(), write_scan(p, s, exchange__theta=None)),
    "scalar flats": lambda p: (
        s := phantom(),
        write_scan(p, s, exchange__data_white=None, **{FLAT_VALUE: np.mean(list(s.flats()))}),
    ),
    "one row": lambda p: (s := phantom(rows=1), write_scan(p, s)),
    "full turn": lambda p: (s := phantom(span=2 * np.pi, projections=180), write_scan(p, s)),
    "NaNs": lambda p: (s := phantom(), write_scan(p, s, exchange__data=holed(s))),
    "odd columns": lambda p: (s := phantom(columns=63), write_scan(p, s)),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_of_a_file_shows_the_phantom(tmp_path: Path, name: str) -> None:
    """Without processes, which make the same image bit for bit (`test_run`): axis and reconstruction."""
    source, path = VARIANTS[name](tmp_path / "scan.h5")
    with batch.open_scan(path) as scan:
        center = batch.find_center(scan)
    assert center == pytest.approx(source.center, abs=0.5)
    volume = batch.reconstruct(path, iterations=30, center=center)
    assert compare(volume, source.truth()).pcc > 0.75  # the offset that the missing darks leave costs most


def test_an_odd_file_through_the_old_links_and_three_workers(start: Start, tmp_path: Path) -> None:
    """Odd columns, exchange1, a full turn, no darks, holes; interleaved and sent twice, one window of all."""
    source = phantom(columns=63, span=2 * np.pi, projections=60)
    path = write_scan(
        tmp_path / "scan.h5", source, "exchange1", exchange1__data_dark=None, exchange1__data=holed(source)
    )
    window = ("--window-length", "500", "--window-step", "120", "--window-iter", "20", "--thread", "64")
    order = {"MINISTREAM_DAQ_INTERLEAVE": "1", "MINISTREAM_DAQ_REPEATS": "2"}
    run = start("run", path, "--exchange", "exchange1", "--workers", "3", "--links", "aps", *window, **order)
    assert run.finish() == 0, run.errors
    with h5py.File(tmp_path / "output" / "000000-recon.h5") as file:
        assert file.attrs["angles_seen"] == 120
        assert compare(file["data"][()], source.truth()).pcc > 0.85


@pytest.mark.parametrize(("columns", "projections"), [(8, 1), (9, 2)])
def test_the_smallest_scans(columns: int, projections: int) -> None:
    source = PhantomSource(columns=columns, rows=1, projections=projections)
    assert batch.find_center(source) is None
    volume = batch.reconstruct(source, iterations=3)
    assert volume.shape == source.truth().shape == (1, columns, columns)
    assert np.isfinite(volume).all()


def test_live_search_for_the_axis_with_two_workers_by_hand(start: Start) -> None:
    size = ("--columns", "64", "--rows", "4", "--projections", "90", "--frame-rate", "0", "--center", "31")
    daq = start("daq", *size, "--bind", "tcp://127.0.0.1:*")
    source = str(daq.wait_for("listening")["endpoint"])
    dist = start("dist", "--source", source, "--workers", "2", "--remove-stripes", "--bind", "tcp://127.0.0.1:*")
    endpoints = str(dist.wait_for("listening")["endpoint"]).split(",")
    options = ("--center", "auto", "--pub-addr", "", "--window-length", "90", "--output", "out", "--window-iter", "2")
    workers = [start("sirt", "--source", endpoint, *options) for endpoint in endpoints]
    assert [program.finish() for program in (*workers, dist, daq)] == [0, 0, 0, 0]
    for worker in workers:
        assert worker.last("scan ended")["center"] == pytest.approx(35.0, abs=0.5)
        assert worker.last("rotation axis found: starting again")
