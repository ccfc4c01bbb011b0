"""`ministream run --tunnel`: the whole pipeline through two gateways and their real proxies."""

import os
import re
import signal
import struct
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from docker import DockerClient
from docker.errors import NotFound

from aps_mini_apps import batch
from aps_mini_apps.daq.phantom import PhantomSource
from aps_mini_apps.dist.correction import Correction
from ministream.base.children import Children
from ministream.base.lifecycle import StopFlag
from ministream.commands.tunnel import LocalTunnel
from s2cs.dataservers.runner_docker import LABEL_FOLDER, LABEL_SESSION, OWN_IMAGE
from tests.integration.conftest import Program, Start
from tests.integration.test_run import last_file, read, write_scan

pytestmark = pytest.mark.needs("haproxy", "nginx", "stunnel", "tcpdump")

QUICK = ("--center", "25.5", "--backend", "numpy")
ONE_WINDOW = ("--window-length", "40", "--window-step", "40", "--window-iter", "3")


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Folder for a run's temporary files, by which its processes are known; short, for the names of sockets in it."""
    with tempfile.TemporaryDirectory(prefix="ms-") as folder:
        yield Path(folder)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    return write_scan(tmp_path / "scan.h5", PhantomSource(columns=48, rows=4, projections=40))


def processes(scratch: Path) -> dict[int, str]:
    """Return the command lines that name the folder: the control servers and their proxies."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if str(scratch) in command:
                found[int(path.parent.name)] = command
    return found


def proxies(scratch: Path, side: str) -> list[int]:
    return [pid for pid, command in processes(scratch).items() if f"{side}-state/sessions/" in command]


def assert_nothing_left(scratch: Path) -> None:
    assert processes(scratch) == {}
    left = [path.name for path in scratch.iterdir() if not path.match("mini-stream-kernels-*.lock")]  # the compiler's
    assert left == []


def batch_image(scan: Path) -> np.ndarray:
    return batch.reconstruct(scan, iterations=3, center=25.5, backend="numpy")


def report_of(output: Path) -> dict[str, str]:
    """Return the figures of the report's table on the tunnel."""
    _, _, rest = (output / "report.html").read_text().partition("<h2>Tunnel</h2>")
    return dict(re.findall(r"<td>(.*?)</td><td>(.*?)</td>", rest.partition("</table>")[0]))


def event_of(run: Program, service: str, name: str) -> dict[str, Any]:
    """Read the log up to the next event of that name from `service`."""
    while (event := run.wait_for(name))["service"] != service:
        pass
    return event


def heard(run: Program, service: str, name: str) -> list[dict[str, Any]]:
    return [e for e in run.events if e["event"] == name and e.get("service") == service]


def pairs_of(run: Program, service: str) -> dict[str, str]:
    """Return where each listener of a gateway leads."""
    (event,) = heard(run, service, "session streaming")
    return dict(re.findall(r"([\d.:]+)->([\d.:]+)", event["pairs"]))


@pytest.mark.parametrize("proxy", ["nginx", "stunnel"])
def test_the_image_through_a_tunnel_is_the_batch_image(
    start: Start, tmp_path: Path, scan: Path, scratch: Path, proxy: str
) -> None:
    run = start("run", scan, *QUICK, *ONE_WINDOW, "--tunnel", "--proxy", proxy, TMPDIR=str(scratch))
    assert run.finish() == 0, run.errors
    streamed, _ = read(last_file(tmp_path / "output"))
    np.testing.assert_array_equal(streamed, batch_image(scan))
    figures = report_of(tmp_path / "output")
    assert (figures["proxy"], figures["encrypted"], figures["restarts"]) == (proxy, "True", "0")
    assert figures["listeners"] == heard(run, "sirt", "waiting for projections")[0]["source"].removeprefix("tcp://")
    assert_nothing_left(scratch)


@pytest.mark.parametrize("links", ["push", "aps"])
def test_each_worker_has_a_connection_of_its_own_from_end_to_end(
    start: Start, tmp_path: Path, scan: Path, scratch: Path, links: str
) -> None:
    options = ("--workers", "2", "--links", links, "--tunnel")
    run = start("run", scan, *QUICK, *ONE_WINDOW, *options, TMPDIR=str(scratch))
    assert run.finish() == 0, run.errors
    streamed, _ = read(last_file(tmp_path / "output"))
    expected = batch_image(scan)
    if links == "push":
        np.testing.assert_array_equal(streamed, expected)
    else:  # their angle is a float32
        np.testing.assert_allclose(streamed, expected, rtol=0, atol=2e-4 * np.ptp(expected))
    outer, inner = pairs_of(run, "c2cs"), pairs_of(run, "p2cs")
    assert len(outer) == len(inner) == 2
    assert sorted(outer.values()) == sorted(inner)
    figures = report_of(tmp_path / "output")
    assert (figures["proxy"], figures["encrypted"], figures["connections"]) == ("haproxy", "True", "2")
    assert [inner[outer[listener]] for listener in figures["listeners"].split(", ")] == figures["targets"].split(", ")
    assert_nothing_left(scratch)


@contextmanager
def captured(path: Path, *ports: str) -> Iterator[None]:
    """Write all that goes through these local ports into a file, as pcap."""
    expression = " or ".join(f"tcp port {port}" for port in ports)
    with path.open("wb") as file:
        capture = subprocess.Popen(
            ["tcpdump", "-i", "lo", "-B", "65536", "-U", "-w", "-", expression],
            stdout=file,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert capture.stderr is not None
        first = capture.stderr.readline()
        try:
            if "listening on" not in first:
                pytest.skip(f"no capture here: {first.strip()}")
            yield
        finally:
            capture.send_signal(signal.SIGINT)
            capture.communicate()


def sent_from(path: Path) -> dict[str, bytes]:
    """Return what was sent from each TCP port, in the order in which it was captured (IPv4 over lo)."""
    data = path.read_bytes()
    sent: defaultdict[str, bytearray] = defaultdict(bytearray)
    position = 24  # the file's own header
    while position < len(data):
        (length,) = struct.unpack_from("=I", data, position + 8)
        packet = memoryview(data)[position + 16 + 14 : position + 16 + length]  # after the record's and Ethernet's
        position += 16 + length
        (total,), tcp = struct.unpack_from(">H", packet, 2), 4 * (packet[0] & 15)
        (port,) = struct.unpack_from(">H", packet, tcp)
        sent[str(port)] += packet[tcp + 4 * (packet[tcp + 12] >> 4) : total]
    return {port: bytes(payload) for port, payload in sent.items()}


def test_no_pixel_crosses_between_the_gateways_in_plain(start: Start, tmp_path: Path, scratch: Path) -> None:
    """A known pattern is in what the distributor sends to its gateway, and not in what that one sends to the other."""
    shape, tile = (16, 128), np.random.default_rng(1).integers(1000, 30_000, 16, np.uint16)
    frame = np.broadcast_to(np.tile(tile, 8), shape)
    flat, dark = np.full(shape, 40_000, np.uint16), np.ones(shape, np.uint16)
    with h5py.File(tmp_path / "pattern.h5", "w") as file:
        file["exchange/data"] = np.broadcast_to(frame, (300, *shape))
        file["exchange/data_white"], file["exchange/data_dark"] = flat[None], dark[None]
        file["exchange/theta"] = np.linspace(0, 180, 300, endpoint=False)
    correction = Correction()
    correction.add_flat(flat)
    correction.add_dark(dark)
    pattern = correction.line_integrals(frame)[0, :16].tobytes()
    window = ("--window-length", "2", "--window-step", "100", "--center", "64", "--backend", "numpy")
    run = start("run", tmp_path / "pattern.h5", *window, "--frame-rate", "30", "--tunnel", TMPDIR=str(scratch))
    event_of(run, "p2cs", "session streaming")
    ((gateway, service),) = pairs_of(run, "p2cs").items()
    between, behind = gateway.rpartition(":")[2], service.rpartition(":")[2]
    with captured(tmp_path / "all.pcap", between, behind):
        assert run.finish() == 0, run.errors
    sent = sent_from(tmp_path / "all.pcap")
    megabytes = frame.size * 4 * 300
    assert len(sent[behind]) > megabytes / 2
    assert len(sent[between]) > megabytes / 2
    assert sent[behind].count(pattern) > 9000  # of 38400; a capture may lose packets
    for raw in (pattern, pattern[:8], tile.tobytes()):
        assert raw not in sent[between]


def test_a_proxy_killed_in_mid_scan_is_restarted_and_the_loss_is_told(
    start: Start, tmp_path: Path, scratch: Path
) -> None:
    """PUSH/PULL connects again by itself; what was under way is lost, and counted."""
    options = ("--columns", "64", "--rows", "4", "--projections", "300", "--frame-rate", "30", "--center", "32")
    window = ("--window-length", "4", "--window-step", "4", "--write-freq", "5", "--backend", "numpy")
    run = start("run", *options, *window, "--timeout", "15", "--tunnel", TMPDIR=str(scratch))
    event_of(run, "sirt", "file written")
    event_of(run, "sirt", "file written")
    (proxy,) = proxies(scratch, "c2cs")
    killed = datetime.now(UTC)
    os.kill(proxy, signal.SIGKILL)
    assert run.finish() == 0, run.errors
    (restarted,) = heard(run, "c2cs", "proxy restarted")
    assert datetime.fromisoformat(restarted["time"]) - killed < timedelta(seconds=10)
    (ended,) = heard(run, "sirt", "scan ended")
    assert ended["received"] + ended["lost"] == 300
    assert ended["received"] > 100  # a busy machine has more under way
    verdict = f"{ended['lost']} frames were lost." if ended["lost"] else "no frame was lost."
    assert verdict in (tmp_path / "output" / "report.html").read_text()
    assert report_of(tmp_path / "output")["restarts"] == "1"
    _, about = read(last_file(tmp_path / "output"))
    assert (about["state"], about["frames_lost"]) == ("complete", ended["lost"])
    assert_nothing_left(scratch)


def test_a_control_server_killed_ends_the_run_and_leaves_no_proxy(start: Start, scan: Path, scratch: Path) -> None:
    run = start("run", scan, *QUICK, "--frame-rate", "2", "--tunnel", TMPDIR=str(scratch))
    event_of(run, "c2cs", "session streaming")
    assert proxies(scratch, "c2cs")
    (server,) = (pid for pid, command in processes(scratch).items() if "c2cs-state" in command and " serve " in command)
    os.kill(server, signal.SIGKILL)
    assert run.finish() == 2
    assert run.errors[-1].startswith("c2cs failed: ended by signal 9")
    assert_nothing_left(scratch)


def test_a_control_server_killed_ends_its_containers(docker_client: DockerClient) -> None:
    """One container stands for its proxies, with their labels: to make each of them takes an engine ten seconds."""
    with Children(StopFlag(), lambda *_: None) as children, LocalTunnel(children, "docker:haproxy") as tunnel:
        session = f"{tunnel._folder}/c2cs-state/sessions/uid"
        labels = {LABEL_SESSION: "uid", LABEL_FOLDER: session}
        container = docker_client.containers.run(OWN_IMAGE, ["sleep", "600"], labels=labels, detach=True)
        (server,) = (child for child in tunnel.servers if child.name == "c2cs")
        server.process.kill()
        server.process.wait()
    with pytest.raises(NotFound):
        container.reload()


@pytest.mark.parametrize(
    ("proxy", "path", "expected"),
    [
        ("squid", os.environ["PATH"], "no proxy is called 'squid'; known are haproxy, nginx, stunnel, ssh"),
        ("stunnel", "/nonexistent", "proxy stunnel is not installed on this gateway: apt install stunnel4"),
    ],
)
def test_a_proxy_that_is_not_there_is_one_line_before_anything_starts(
    start: Start, tmp_path: Path, scratch: Path, proxy: str, path: str, expected: str
) -> None:
    run = start("run", "--tunnel", "--proxy", proxy, TMPDIR=str(scratch), PATH=path)
    assert run.finish() == 2
    assert len(run.events) == 1
    assert run.errors[0].startswith(expected)
    assert_nothing_left(scratch)
    assert not (tmp_path / "output").exists()
