"""The receiver, its workers and the client as real processes; the client's scans go through two gateways."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import httpx
import pytest

from receiver.access import Access
from receiver.caller import AwayError, Caller, RefusedError, UnknownError
from s2cs.site import init_site
from tests.delivery.intake_service import intake
from tests.integration.conftest import Program, Start
from tests.integration.test_producer import SMALL, heard, start_producer
from tests.ports import some_port

SHORT = SMALL | {"MINISTREAM_DAQ_PROJECTIONS": "40", "MINISTREAM_DAQ_FRAME_RATE": "0"}
LONG = SMALL | {"MINISTREAM_DAQ_PROJECTIONS": "5000"}
"""A scan of minutes: whoever ends it sooner did so for another reason."""

OPTIONS = {"backend": "numpy", "center": 16, "window_length": 4, "write_freq": 10}
CHOSEN = ("--backend", "numpy", "--center", "16", "--window-length", "4", "--write-freq", "10")


@dataclass
class Service:
    """A receiver that serves."""

    program: Program
    address: str

    def caller(self, folder: Path) -> Caller:
        return Caller(f"https://{self.address}", Access(folder / "receiver-access"))


def start_receiver(start: Start, *options: str, port: int = 0) -> Service:
    program = start("receiver", "--port", str(port), *options)
    return Service(program, program.wait_for("serving")["address"])


def wait_for(program: Program, service: str, event: str) -> dict:
    """Read the log up to the next `event` of `service`."""
    while (said := program.wait_for(event))["service"] != service:
        pass
    return said


def listener(endpoint: str) -> str:
    return endpoint.removeprefix("tcp://")


def states(folder: Path) -> list[str]:
    """Return the state of each whole file; nothing unfinished may lie beside them."""
    assert not list(folder.glob(".*"))
    found = []
    for path in sorted(folder.glob("[0-9]*-recon*.h5")):
        with h5py.File(path) as file:
            found.append(str(file.attrs["state"]))
    return found


# ---- the receiver by itself: the producer's entrance is its listener


def test_a_run_is_carried_out_told_and_counted(start: Start, tmp_path: Path) -> None:
    receiver = start_receiver(start)
    _, endpoint, _ = start_producer(start, **SHORT)
    with receiver.caller(tmp_path) as caller:
        assert caller.status()["state"] == "idle"
        run = caller.begin([listener(endpoint)], OPTIONS)
        with pytest.raises(RefusedError, match=f"run {run} is under way"):
            caller.begin(["127.0.0.1:5"], {})
        events = [event for event in caller.events(run) if event]
        assert [event["n"] for event in events] == list(range(1, len(events) + 1))
        assert list(caller.events(run, after=3)) == events[3:]
        with pytest.raises(UnknownError, match="no run"):
            next(caller.events("0" * 32))
        status = caller.status()
    final = events[-1]
    assert (final["event"], final["state"], final["reason"], final["lost"]) == ("run ended", "complete", "", 0)
    assert {event["service"] for event in events} == {"receiver", "sirt", "daq", "dist"}
    assert (status["sent"], status["received"], status["reconstructed"], status["total"]) == (40, 40, 40, 40)
    assert states(tmp_path / "output") == ["in progress"] * 4 + ["in progress", "complete"]
    assert len(status["files"]) == final["files"] == 6
    page = (tmp_path / "output" / "report.html").read_text()
    assert "The scan is complete; no frame was lost." in page
    figures = httpx.get(f"https://{receiver.address}/metrics", verify=Access(tmp_path / "receiver-access").tls()).text
    for line in ("projections_reconstructed 40.0", "files_written 6.0", 'state{state="complete"} 1.0'):
        assert f"ministream_receiver_{line}" in figures
    assert receiver.program.finish(stop=signal.SIGTERM) == 0
    assert heard(receiver.program, "daq", "scan ended")


def test_strangers_and_mistakes_are_refused_in_clear_words(start: Start, tmp_path: Path) -> None:
    receiver = start_receiver(start, "--workers", "2", "--networks", "127.0.0.0/8")
    token = Access(tmp_path / "receiver-access").token()
    plain = httpx.Client(base_url=f"https://{receiver.address}", verify=Access(tmp_path / "receiver-access").tls())
    assert plain.get("/healthz").status_code == 200
    for header in ({}, {"Authorization": f"Bearer {token[:-1]}"}, {"Authorization": token}):
        for method, path in (("GET", "/status"), ("POST", "/run"), ("POST", "/workers"), ("GET", "/nothing")):
            assert plain.request(method, path, headers=header).status_code == 401
    assert plain.post("/run", content=b"x" * 2**21, headers={"Authorization": f"Bearer {token}"}).status_code == 413
    plain.close()
    with receiver.caller(tmp_path) as caller:
        for listeners, options, reason in (
            ([], {}, "no listeners"),
            (["nowhere"], {}, "no address"),
            (["10.0.0.1:5074"], {}, "not in the networks"),
            (["example.org:5074"], {}, "not in the networks"),
            (["127.0.0.1:1", "127.0.0.1:1"], {}, "cannot share a listener"),
            ([f"127.0.0.1:{port}" for port in (1, 2, 3)], {}, "the receiver has 2"),
            (["127.0.0.1:1"], {"recon_output_dir": "/"}, "cannot choose recon_output_dir"),
            (["127.0.0.1:1"], {"window_length": 0}, "window_length"),
        ):
            with pytest.raises(RefusedError, match=reason):
                caller.begin(listeners, options)
        assert caller.status()["state"] == "idle"
    start_receiver(start, "--access", "other").program.finish(stop=signal.SIGTERM)
    with Caller(f"https://{receiver.address}", Access(tmp_path / "other")) as caller, pytest.raises(AwayError) as error:
        caller.status()
    assert "another certificate" in str(error.value)
    assert token not in json.dumps(receiver.program.events)
    assert receiver.program.finish(stop=signal.SIGTERM) == 0


def test_whatever_ends_a_run_the_receiver_tells_why_and_keeps_what_was_written(start: Start, tmp_path: Path) -> None:
    """The producer's end fails the run and not the receiver, which takes the next one; SIGTERM ends both."""
    receiver = start_receiver(start, "--no-report")
    with receiver.caller(tmp_path) as caller:
        for signalled in ("producer", "receiver"):
            producer, endpoint, _ = start_producer(start, **LONG)
            run = caller.begin([listener(endpoint)], OPTIONS)
            events = caller.events(run)
            next(event for event in events if event and event["event"] == "file written")
            (producer if signalled == "producer" else receiver.program).process.terminate()
            *_, final = (event for event in events if event)
            assert (final["event"], final["state"]) == ("run ended", "failed")
            assert ("the producer stopped" if signalled == "producer" else "stopped: SIGTERM") in final["reason"]
            assert states(tmp_path / "output")[-1] not in ("in progress", "complete")
            assert producer.finish(stop=signal.SIGTERM) != 0
    assert receiver.program.finish() == 1


def test_workers_elsewhere_share_the_rows_and_one_that_vanishes_fails_the_run(start: Start, tmp_path: Path) -> None:
    receiver = start_receiver(start, "--no-report", "--remote-workers", "2", "--vanished", "8")
    where = ("--receiver", f"https://{receiver.address}")
    workers = {name: start("worker", *where, "--name", name) for name in ("anna", "bert")}
    for environment, state in ((SHORT, "complete"), (LONG, "failed")):
        first = some_port(2)
        producer = start("producer", "--bind", f"tcp://127.0.0.1:{first}", "--health", "127.0.0.1:0", "--workers", "2",
            **environment,
        )  # fmt: skip
        wait_for(producer, "dist", "listening")
        with receiver.caller(tmp_path) as caller:
            run = caller.begin([f"127.0.0.1:{first}", f"127.0.0.1:{first + 1}"], OPTIONS)
            said = []
            for event in caller.events(run):
                said.append(event or {})
                if state == "failed" and said[-1].get("event") == "file written" and said[-1]["service"] == "sirt1":
                    (name,) = (e["worker"] for e in said if e.get("serves_as") == "sirt1")
                    workers[name].process.kill()
        assert (said[-1]["event"], said[-1]["state"]) == ("run ended", state)
        producer.process.kill()
    assert said[-1]["reason"].startswith(f"sirt1 on {name} has vanished")
    assert {e["service"] for e in said if e} == {"receiver", "sirt0", "sirt1", "daq", "dist"}
    (other,) = (worker for worker in workers.values() if worker.process.poll() is None)
    assert other.finish(stop=signal.SIGTERM) == 130
    assert receiver.program.finish(stop=signal.SIGTERM) == 0


def test_each_finished_reconstruction_is_uploaded_as_soon_as_the_archive_is_up(start: Start, tmp_path: Path) -> None:
    with intake(tmp_path / "archive", port=some_port()) as archive:
        where = ("--upload", archive.url, "--upload-token-file", str(archive.token_file))
        receiver = start_receiver(start, "--no-report", *where)
        for is_up in (True, False):
            if not is_up:
                archive.process.kill()
            _, endpoint, _ = start_producer(start, **SHORT)
            with receiver.caller(tmp_path) as caller:
                *_, final = (event for event in caller.events(caller.begin([listener(endpoint)], OPTIONS)) if event)
            assert (final["event"], final["state"]) == ("run ended", "complete")
            if not is_up:
                wait_for(receiver.program, "upload", "no answer yet")
                archive.start()
            assert wait_for(receiver.program, "receiver", "uploaded")["scan"] == final["scan"]
            (sent,) = [content for path, content in archive.files().items() if f"{final['scan']}/" in path]
            assert sent == Path(tmp_path, final["last"]).read_bytes()
    assert receiver.program.finish(stop=signal.SIGTERM) == 0


# ---- the client, through two gateways


@dataclass
class Gateways:
    """Two control servers, and the folders by which a client has access to them."""

    options: list[str]
    folder: Path

    def live_sessions(self) -> list[str]:
        return [str(path) for side in ("p2cs", "c2cs") for path in (self.folder / f"{side}-state/sessions").iterdir()]


@contextmanager
def serving(folder: Path, name: str, ports: str) -> Iterator[str]:
    site, token = init_site(folder / name, ["127.0.0.1"])
    (folder / name / "token").write_text(token)
    command = [sys.executable, "-m", "s2cs", "serve", "--listener-ip", "127.0.0.1", "--port", "0"]
    command += ["--port-range", ports, "--type", "haproxy", "--allow", "127.0.0.1/32:1024-65535"]
    command += ["--server-crt", str(site.certificate), "--server-key", str(site.key), "--tokens", str(site.tokens)]
    command += ["--state-dir", str(folder / f"{name}-state")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        for line in server.stdout:
            if found := re.search(r"serving +address=(\S+)", line):
                yield found.group(1)
                break
        server.terminate()
        server.communicate()


@pytest.fixture(scope="module")
def gateways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateways]:
    folder = tmp_path_factory.mktemp("gw")
    first = some_port(80)
    with (
        serving(folder, "p2cs", f"{first}-{first + 39}") as producer,
        serving(folder, "c2cs", f"{first + 40}-{first + 79}") as consumer,
    ):
        options = ["--producer-s2cs", producer, "--producer-access", str(folder / "p2cs")]
        options += ["--consumer-s2cs", consumer, "--consumer-access", str(folder / "c2cs")]
        yield Gateways(options, folder)


through_gateways = pytest.mark.needs("haproxy")


def start_client(start: Start, gateways: Gateways, receiver: Service, endpoint: str) -> Program:
    where = ("--receiver", f"https://{receiver.address}", "--target", listener(endpoint))
    return start("client", *gateways.options, *where, *CHOSEN, "--timeout", "20", "--away", "20")


@through_gateways
def test_the_client_follows_a_scan_through_the_tunnel_to_its_end(
    start: Start, tmp_path: Path, gateways: Gateways
) -> None:
    receiver = start_receiver(start)
    _, endpoint, _ = start_producer(start, **SHORT)
    client = start_client(start, gateways, receiver, endpoint)
    assert client.finish() == 0, client.errors
    story = "\n".join(e["event"] for e in client.events if e["level"] == "raw")
    assert "The scan is complete; no frame was lost." in story
    for name in ("made", "distributed", "reconstructed"):
        assert re.search(rf"projections {name} +40", story)
    assert re.search(r"tunnel +haproxy, encrypted", story)
    opened, released = heard(client, "client", "tunnel open"), heard(client, "client", "tunnel released")
    assert opened[0]["targets"] == listener(endpoint)
    assert opened[0]["uid"] == released[0]["uid"]
    (waiting,) = heard(client, "sirt", "waiting for projections")
    assert waiting["source"] == f"tcp://{opened[0]['listeners']}"
    assert heard(client, "daq", "scan ended")
    assert states(tmp_path / "output")[-1] == "complete"
    assert "haproxy" in (tmp_path / "output" / "report.html").read_text()
    assert gateways.live_sessions() == []


@through_gateways
def test_a_client_that_is_stopped_stops_the_run(start: Start, tmp_path: Path, gateways: Gateways) -> None:
    receiver = start_receiver(start, "--no-report")
    _, endpoint, _ = start_producer(start, **LONG)
    client = start_client(start, gateways, receiver, endpoint)
    wait_for(client, "sirt", "file written")
    assert client.finish(stop=signal.SIGTERM) == 1
    assert "the client was stopped (SIGTERM)" in client.last("run ended")["reason"]
    assert client.last("tunnel released")
    with receiver.caller(tmp_path) as caller:
        assert caller.status()["state"] == "failed"
    assert states(tmp_path / "output")[-1] == "SIGTERM"
    assert gateways.live_sessions() == []


@through_gateways
def test_a_receiver_that_was_restarted_ends_the_clients_run_soon(start: Start, gateways: Gateways) -> None:
    receiver = start_receiver(start, "--no-report")
    _, endpoint, _ = start_producer(start, **LONG)
    client = start_client(start, gateways, receiver, endpoint)
    wait_for(client, "sirt", "file written")
    os.kill(receiver.program.process.pid, signal.SIGKILL)
    receiver.program.process.wait()
    start_receiver(start, port=int(receiver.address.rpartition(":")[2]))
    assert client.finish() == 1
    (reason,) = (e["event"] for e in client.events if e["level"] == "error" and e["service"] == "client")
    assert re.fullmatch(
        r"the receiver was restarted in mid-scan; \d+ projections reconstructed; files so far: .*-recon.h5", reason
    )
    assert gateways.live_sessions() == []


def test_a_client_says_what_it_waits_for(start: Start) -> None:
    client = start("client", "--timeout", "1")
    assert client.finish() == 2
    assert "producer-access/token: No such file" in heard(client, "client", "waiting")[0]["reason"]
    assert client.errors[-1].startswith("not ready within 1 s: ")
