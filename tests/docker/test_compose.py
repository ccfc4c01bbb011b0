"""Two facilities on one machine, for real: a scan from the producer through both gateways into the output volume."""

import time
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest

from aps_mini_apps.daq.phantom import PhantomSource
from aps_mini_apps.quality.measures import compare
from tests.docker.conftest import ENVIRONMENT, MARKS, PROJECT, SERVICES, Stack, docker, inspect

pytestmark = [
    *MARKS,
    pytest.mark.timeout(1800),
    pytest.mark.usefixtures("images"),
]

NewStack = Callable[..., Stack]

SMALL = {"MINISTREAM_DAQ_COLUMNS": 64, "MINISTREAM_DAQ_ROWS": 4, "MINISTREAM_DAQ_PROJECTIONS": 90}
"""A scan that needs no compiled kernels."""
QUICK = {"MINISTREAM_SIRT_BACKEND": "numpy", "MINISTREAM_RECEIVER_SLICES": 0, "MINISTREAM_SIRT_WRITE_FREQ": 5}
SLOW = {**SMALL, "MINISTREAM_DAQ_FRAME_RATE": 2}
"""Forty-five seconds, in which something may happen."""

REACHES = 'for each in "$@"; do timeout 3 bash -c "exec 3<>/dev/tcp/$each" 2>/dev/null && echo $each; done; true'
"""Prints those of its HOST/PORT arguments that accept a connection."""


def reached(network: str, *addresses: str) -> list[str]:
    """Return which addresses a container on `network` reaches."""
    script = ("--entrypoint", "bash", "mini-stream/control", "-c", REACHES, "-")
    return docker("run", "--rm", "--network", network, *script, *addresses).split()


@pytest.mark.parametrize("compose", ["v1", pytest.param("v2", marks=pytest.mark.long)])
def test_a_phantom_crosses_both_gateways_into_the_output_volume(stack: NewStack, tmp_path: Path, compose: str) -> None:
    up = stack(compose)
    done = up.run()
    assert done.returncode == 0, done.stdout[-4000:]
    files = up.files(tmp_path / "out")
    with h5py.File(files[-1]) as file:
        volume, about = file["data"][()], dict(file.attrs)
    assert (about["state"], about["angles_seen"], about["frames_lost"]) == ("complete", 180, 0)
    assert compare(volume, PhantomSource().truth()).pcc > 0.9
    assert min(path.stat().st_mtime for path in files) - up.started < 180
    logs = {service: up.log(service) for service in SERVICES}
    for service, said in {
        "producer": "scan ended",
        "p2cs": "serving",
        "c2cs": "serving",
        "receiver": "file written",
        "ministream": "tunnel released",
    }.items():
        assert said in logs[service], logs[service]
    assert not [line for log in logs.values() for line in log.splitlines() if " error " in line or "Traceback" in line]
    up("down", "--volumes")
    assert not docker("ps", "-aq", "--filter", f"label=com.docker.compose.project={PROJECT}")
    assert not docker("network", "ls", "-q", "--filter", "name=_network")
    assert not docker("volume", "ls", "-q", "--filter", f"name={PROJECT}")


def test_a_scan_of_ones_own_by_one_variable(
    stack: NewStack, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENVIRONMENT, "DATA_FILE", str(shared_data / "tooth.h5"))
    up = stack(
        producer={"MINISTREAM_DAQ_FRAME_RATE": 0},
        receiver={"MINISTREAM_SIRT_CENTER": 296, "MINISTREAM_RECEIVER_SLICES": 2},
    )
    done = up.run()
    assert done.returncode == 0, done.stdout[-4000:]
    with h5py.File(up.files(tmp_path / "out")[-1]) as file:
        assert (file.attrs["state"], file.attrs["angles_seen"], file["data"].shape) == ("complete", 181, (2, 640, 640))


def test_a_second_scan_follows_a_first(stack: NewStack, tmp_path: Path) -> None:
    up = stack(producer={**SMALL, "MINISTREAM_DAQ_FRAME_RATE": 0}, receiver=QUICK)
    assert up.run().returncode == 0
    assert up.run().returncode == 0, up.log("ministream")
    up("down")
    assert up.run().returncode == 0, up.log("ministream")
    up.files(tmp_path / "out")
    assert len(list((tmp_path / "out" / "earlier").iterdir())) == 2


class TestWhileAScanRuns:
    def test_nothing_but_the_tunnel_leads_to_the_producer(self, stack: NewStack) -> None:
        up = stack(producer=SLOW, receiver=QUICK)
        up.start()
        entrance = "192.168.100.10/5560"
        up.wait_for("producer", "endpoint=tcp://192.168.100.10:5560")
        assert reached("producer_network", entrance) == [entrance]
        up.wait_for("ministream", "tunnel open")
        assert reached("consumer_network", entrance, "192.168.101.10/5000", "192.168.100.11/5000") == []
        assert reached("s2cs_network", entrance, "192.168.102.11/8090") == []
        assert set(inspect("producer")["NetworkSettings"]["Networks"]) == {"producer_network"}
        assert set(inspect("receiver")["NetworkSettings"]["Networks"]) == {"consumer_network"}
        for service in SERVICES:
            self._has_no_privileges(service)
        assert "192.168.102.10" in docker("exec", "receiver", "bash", "-c", "getent hosts c2cs")

    def _has_no_privileges(self, service: str) -> None:
        host = inspect(service)["HostConfig"]
        assert (host["Privileged"], host["CapDrop"], host["ReadonlyRootfs"]) == (False, ["ALL"], True)
        assert "no-new-privileges:true" in host["SecurityOpt"]
        assert not [bind for bind in host["Binds"] or () if "docker.sock" in bind]
        status = docker("exec", service, "cat", "/proc/1/status")
        assert "Uid:\t10001\t10001\t10001\t10001" in status
        assert "CapEff:\t0000000000000000" in status

    def test_a_receiver_that_is_restarted_ends_it_with_its_reason(self, stack: NewStack) -> None:
        up = stack(producer=SLOW, receiver=QUICK)
        up.start()
        up.wait_for("ministream", "file written")
        up("restart", "receiver")
        assert up.exit_code() == 1
        assert "restarted in mid-scan" in up.log("ministream") or "SIGTERM" in up.log("ministream")
        assert "-recon.h5" in up.log("ministream")

    @pytest.mark.long
    def test_a_gateway_that_is_restarted_ends_it_with_its_reason_or_not_at_all(self, stack: NewStack) -> None:
        up = stack(producer=SLOW, receiver=QUICK)
        up.start()
        up.wait_for("ministream", "file written")
        up("restart", "p2cs")
        if up.exit_code():
            assert "tunnel is lost" in up.log("ministream")
        else:
            assert "complete" in up.log("ministream")

    def test_a_full_volume_ends_it_with_its_reason(self, stack: NewStack) -> None:
        tiny = {"driver": "local", "driver_opts": {"type": "tmpfs", "device": "tmpfs", "o": "size=160k,uid=10001"}}
        up = stack(producer=SLOW, receiver=QUICK, volumes=tiny)
        assert up.run().returncode == 1
        assert "No space left on device" in up.log("ministream")


def test_a_wrong_setting_is_told_at_once(stack: NewStack) -> None:
    up = stack(receiver={"MINISTREAM_SIRT_WINDOW_LENGHT": 5})
    began = time.monotonic()
    done = up.run()
    assert done.returncode != 0
    assert time.monotonic() - began < 120
    assert "WINDOW_LENGHT" in done.stdout
    assert "window_length" in done.stdout


@pytest.mark.long
@pytest.mark.parametrize("kind", ["nginx", "stunnel", "ssh"])
def test_other_proxies_carry_it_too(stack: NewStack, kind: str) -> None:
    proxy = {"MINISTREAM_S2CS_TYPE": kind}
    fast = {**SMALL, "MINISTREAM_DAQ_FRAME_RATE": 0}
    up = stack(producer=fast, receiver=QUICK, p2cs=proxy, c2cs=proxy)
    done = up.run()
    assert done.returncode == 0, done.stdout[-4000:]
    assert f"{kind}, encrypted" in up.log("ministream")


@pytest.mark.long
def test_workers_in_containers_of_their_own_share_the_rows(stack: NewStack, tmp_path: Path) -> None:
    two = {"MINISTREAM_DIST_WORKERS": 2}
    up = stack(
        producer={**SMALL, **two},
        ministream=two,
        receiver={**QUICK, "MINISTREAM_RECEIVER_REMOTE_WORKERS": 2},
        worker=QUICK,
    )
    up("--profile", "workers", "up", "--no-build", "-d", "--scale", "worker=2")
    assert up.exit_code() == 0, up.log("ministream")
    with h5py.File(up.files(tmp_path / "out")[-1]) as file:
        assert file["data"].shape == (4, 64, 64)
