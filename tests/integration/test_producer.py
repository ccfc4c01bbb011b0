"""The producer service and a worker in real processes: what happens at one end is known at the other."""

import http.client
import json
import re
import signal
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.integration.conftest import PATIENCE, Program, Start

SMALL = {"MINISTREAM_DAQ_COLUMNS": "32", "MINISTREAM_DAQ_ROWS": "2", "MINISTREAM_DAQ_FRAME_RATE": "30"}
LONG = SMALL | {"MINISTREAM_DAQ_PROJECTIONS": "5000", "MINISTREAM_DAQ_FRAME_RATE": "10"}
"""A scan of minutes: whoever ends it sooner did so for another reason."""

SOON = 30.0
"""Seconds: half of what a worker waits that was told nothing."""


def heard(program: Program, service: str, event: str) -> list[dict[str, Any]]:
    return [e for e in program.events if (e.get("service"), e["event"]) == (service, event)]


def start_producer(start: Start, *options: str, **environment: str) -> tuple[Program, str, str]:
    """Start the service at free ports; return it, its entrance, and the address of its health."""
    where = ("--bind", "tcp://127.0.0.1:*", "--health", "127.0.0.1:0")
    producer = start("producer", *where, *options, **environment)
    address = producer.wait_for("serving")["health"]
    while (said := producer.wait_for("listening"))["service"] != "dist":
        pass
    return producer, said["endpoint"], address


def start_worker(start: Start, endpoint: str) -> Program:
    """Start a worker with short windows: it has soon reconstructed all that was on its way to it."""
    options = ("--pub-addr", "", "--backend", "numpy", "--output", "out", "--window-length", "2")
    return start("sirt", "--source", endpoint, *options)


def ask(address: str, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(address, timeout=PATIENCE)
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, body


def figures(address: str) -> dict[str, float]:
    lines = ask(address, "/metrics")[1].splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


def state_of_last_file(folder: Path, rows: str = "") -> str:
    with h5py.File(max(folder.glob(f"*-recon{rows}.h5"))) as file:
        return str(file.attrs["state"])


def test_a_scan_is_known_at_both_ends_and_leaves_the_service_up(start: Start, tmp_path: Path) -> None:
    producer, endpoint, address = start_producer(start, **SMALL, MINISTREAM_DAQ_PROJECTIONS="60")
    worker = start_worker(start, endpoint)
    assert worker.finish() == 0
    assert state_of_last_file(tmp_path / "out") == "complete"
    (sent,), (distributed,) = heard(worker, "daq", "scan ended"), heard(worker, "dist", "scan ended")
    assert (sent["sent"], sent["projections"], sent["via"]) == (80, 60, "sirt")
    assert (distributed["received"], distributed["sent"], distributed["lost"], distributed["refused"]) == (80, 60, 0, 0)
    assert heard(worker, "sirt", "scan ended")[0]["received"] == 60
    assert heard(worker, "daq", "scan started")[0]["rows"] == 2
    while producer.wait_for("scan ended")["service"] != "dist":
        pass
    wait_until(address, "the scan has ended")
    expected = {"frames_read_total": 80, "projections_distributed_total": 60, "frames_lost_total": 0}
    found = figures(address)
    assert {name: found[f"ministream_{name}"] for name in expected} == expected
    assert producer.finish(stop=signal.SIGTERM) == 0
    assert producer.events[-1]["event"] == "stopped after the scan"
    assert {e["service"] for e in producer.events} == {"producer", "daq", "dist"}
    assert not any("via" in e for e in producer.events)


def wait_until(address: str, reason: str) -> None:
    """Ask the service how it is until it says `reason`; it must be well all the time."""
    deadline = time.monotonic() + PATIENCE
    while True:
        status, body = ask(address, "/healthz")
        assert status == 200
        if json.loads(body) == {"reason": reason}:
            return
        assert time.monotonic() < deadline, body


def test_a_stop_in_mid_scan_ends_all_workers_with_the_reason(start: Start, tmp_path: Path) -> None:
    producer, endpoint, address = start_producer(start, "--workers", "2", **LONG)
    workers = [start_worker(start, each) for each in endpoint.split(",")]
    for worker in workers:
        worker.wait_for("file written")
    assert figures(address)['ministream_up{program="dist"}'] == 1
    began = time.monotonic()
    assert producer.finish(stop=signal.SIGTERM) == 130
    for worker in workers:
        assert worker.finish() == 2
        assert re.fullmatch("the producer stopped: (the acquisition stopped: )?SIGTERM", worker.errors[-1])
    states = {state_of_last_file(tmp_path / "out", rows) for rows in (".rows0-0", ".rows1-1")}
    assert states == {worker.errors[-1] for worker in workers}
    assert time.monotonic() - began < SOON
    assert heard(workers[0], "daq", "scan started")
    assert not heard(workers[1], "daq", "scan started"), "one log is enough for all"


def broken_scan(path: Path) -> Path:
    """Write a scan of 1 MB frames, read 32 at once; frame 100 cannot be, behind more than all queues hold."""
    shape = (110, 4096, 128)
    with h5py.File(path, "w") as file:
        data = file.create_dataset("exchange/data", shape, np.uint16, chunks=(1, *shape[1:]), compression="gzip")
        data[:] = 550
        file["exchange/data_white"] = np.full((2, *shape[1:]), 1000, np.uint16)
        file["exchange/data_dark"] = np.full((2, *shape[1:]), 100, np.uint16)
        file["exchange/theta"] = np.linspace(0, 180, shape[0])
        bad = data.id.get_chunk_info_by_coord((100, 0, 0))
    with path.open("r+b") as raw:
        raw.seek(bad.byte_offset)
        raw.write(b"\xff" * bad.size)
    return path


def test_a_file_that_breaks_in_mid_scan_is_named_at_both_ends(start: Start, tmp_path: Path) -> None:
    path = broken_scan(tmp_path / "scan.h5")
    environment = {"MINISTREAM_DAQ_FILE": str(path), "MINISTREAM_DAQ_FRAME_RATE": "0", "MINISTREAM_DIST_ROWS": "2"}
    producer, endpoint, _ = start_producer(start, **environment)
    worker = start_worker(start, endpoint)
    assert worker.finish() == 2
    assert producer.finish() == 2
    (reason,) = [e["event"] for e in producer.events if (e["service"], e["level"]) == ("daq", "error")]
    assert "scan.h5" in reason
    assert producer.errors[-1].endswith(reason)
    assert worker.errors[-1] == f"the producer stopped: the acquisition stopped: {reason}"
    assert state_of_last_file(tmp_path / "out") == worker.errors[-1]


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"MINISTREAM_DAQ_FILE": "none.h5"}, "daq failed: none.h5: no such file"),
        ({"MINISTREAM_DAQ_COLUMN": "32"}, "environment MINISTREAM_DAQ_COLUMN: no option .* did you mean columns"),
        ({"MINISTREAM_DIST_BIND": "here"}, "dist failed: cannot listen at here"),
        ({"MINISTREAM_DAQ_PUBLISHER_ADDR": "tcp://127.0.0.1:*"}, "take the options of the old link"),
    ],
)
def test_a_wrong_setting_ends_the_service_with_one_clear_line(
    start: Start, environment: dict[str, str], reason: str
) -> None:
    producer = start("producer", "--health", "127.0.0.1:0", **environment)
    assert producer.finish() == 2
    assert [e["service"] for e in producer.events if e["level"] == "error"].count("producer") == 1
    assert re.search(reason, producer.errors[-1]), producer.errors
