"""Delivery in containers: mirrored, fetched by ticket, locked down, and gone without a trace."""

import hashlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.delivery.sync_programs import until
from tests.delivery.ticket_service import accepted, contents
from tests.docker.conftest import alone, command, docker, inspect
from tests.docker.delivery_stack import IMAGE, OUTPUT, Delivery, left, make_servers, receive, started
from tests.ports import some_port

pytestmark = [
    pytest.mark.docker,
    pytest.mark.xdist_group("docker"),
    pytest.mark.needs("docker", "docker-compose"),
    pytest.mark.timeout(900),
]

LARGEST = 350e6
DIES_AT_THE_FIRST_BYTES = "until [ -s /media/live/download/.h5/part ]; do :; done; kill -9 -1"


@pytest.fixture(scope="module")
def image() -> Iterator[None]:
    """The image, made from this checkout, and the engine for oneself; skip where none answers."""
    if command("docker", "info", check=False).returncode:
        pytest.skip("no Docker engine answers here (bash tests/docker/engine.sh starts one, as root)")
    with alone():
        docker("build", "--file", "delivery/Dockerfile", "--tag", IMAGE, ".", timeout=600)
        yield


def ports() -> dict[str, int]:
    first = some_port(2)
    return {"SERVER_PORT": first, "TICKETS_PORT": first + 1}


@pytest.fixture(scope="module")
def delivery(image: None) -> Iterator[Delivery]:  # noqa: ARG001 - held, not used
    """What most facilities would start: both ways out, with everything embedded."""
    with started("sync", "tickets", ports=ports(), settings={"INTERVAL": "1"}) as stack:
        yield stack


def fetch(delivery: Delivery, path: str) -> bytes:
    """Fetch a file by ticket and link, from outside, as somebody who has nothing but the link."""
    with delivery.operator() as operator:
        answers = iter(lambda: operator.post("/download", json={"paths": [path]}), None)
        ticket = accepted(next(answer for answer in answers if answer.status_code != 404))  # being written, at first
        until(lambda: operator.get(f"/ticket/{ticket}/status").json()["state"] == "ready", f"{ticket} ready")
        link = operator.post(f"/ticket/{ticket}/link").raise_for_status().json()["url"]
    assert link.startswith(f"{delivery.tickets}/ticket/{ticket}/result?")
    return contents(httpx.get(link, timeout=60).raise_for_status().content)[path]


def mirrored(delivery: Delivery, name: str) -> str:
    """Return the SHA-256 of a file that the broker has unpacked; no text while it has not, or does not run."""
    return delivery.shell("broker", f"sha256sum /media/live/download/{name}", check=False).partition(" ")[0]


def test_a_file_can_be_fetched_by_ticket_from_outside(delivery: Delivery, tmp_path: Path) -> None:
    digest = receive(tmp_path, 3_000_000, "scan.bin")
    assert hashlib.sha256(fetch(delivery, "scan.bin")).hexdigest() == digest
    assert "Downloads" in httpx.get(delivery.tickets).text


def test_a_broker_that_is_killed_in_the_middle_goes_on_and_files_are_archived_once(
    delivery: Delivery, tmp_path: Path
) -> None:
    with ThreadPoolExecutor() as pool:
        dying = pool.submit(delivery.shell, "broker", DIES_AT_THE_FIRST_BYTES, check=False)
        digest = receive(tmp_path, 150_000_000, "000000-recon.h5")
        dying.result()
    until(lambda: mirrored(delivery, "000000-recon.h5") == digest, "mirrored")
    assert delivery.inspect("broker")["RestartCount"] == 1
    assert re.findall(r"path=/stream/live/h5 +status=(20\d)", delivery.log("server")) == ["200", "206"]
    until(lambda: delivery.shell("server", "ls /media/live/archive") == "000000-recon.h5", "archived")
    assert delivery.shell("server", "ls /receiver/*.h5", check=False) == ""
    assert len(delivery.shell("broker", "ls /media/live/download/*.zip").split()) == 1


def test_containers_may_do_no_more_than_they_need(delivery: Delivery) -> None:
    containers = delivery.containers()
    assert set(containers) == {"keys", "server", "broker", "tickets"}
    for service in containers:
        found = delivery.inspect(service)
        host = found["HostConfig"]
        assert (found["Config"]["User"], host["ReadonlyRootfs"], host["CapDrop"]) == ("10001", True, ["ALL"]), service
        assert (host["Privileged"], host["SecurityOpt"]) == (False, ["no-new-privileges:true"]), service
        assert not [mount for mount in found["Mounts"] if mount["Type"] == "bind"], service
        published = [place for places in (host["PortBindings"] or {}).values() for place in places]
        assert {place["HostIp"] for place in published} <= {"127.0.0.1"}, service
    assert delivery.shell("broker", "ls /keys") == ""
    assert "Read-only" in command("docker", "exec", containers["tickets"], "touch", "/receiver/x", check=False).stderr


def test_the_image_is_small_labelled_and_holds_neither_compiler_nor_secret(image: None) -> None:  # noqa: ARG001
    found = inspect(IMAGE)
    assert found["Size"] <= LARGEST
    assert found["Config"]["Labels"]["org.opencontainers.image.title"] == "Mini-Stream"
    script = "id -u; type -P cc gcc make pip pip3 s2cs; python3 -m pip -V; find /keys /broker /data -type f"
    assert docker("run", "--rm", "--network", "none", IMAGE, "bash", "-c", script, check=False) == "10001"


def test_nothing_is_left_but_what_is_the_receivers(delivery: Delivery) -> None:
    assert left()
    delivery("down", "--volumes", "--timeout", "5")
    assert left() == []
    assert docker("volume", "inspect", OUTPUT, "--format", "{{.Name}}") == OUTPUT


@pytest.mark.long
@pytest.mark.parametrize("compose", ["v1", "v2"])
def test_production_has_its_own_database_and_store(image: None, tmp_path: Path, compose: str) -> None:  # noqa: ARG001
    settings = {
        "INTERVAL": "1",
        "DATABASE": "postgresql://delivery@postgres/delivery?passfile=/keys/pgpass",
        "TICKETS_STORE": "s3://artefacts/tickets",
        **make_servers(tmp_path / "servers"),
    }
    profiles = ("sync", "tickets", "postgres", "s3")
    with started(*profiles, ports=ports(), settings=settings, compose=compose) as stack:
        digest = receive(tmp_path, 3_000_000, "scan.bin")
        assert hashlib.sha256(fetch(stack, "scan.bin")).hexdigest() == digest
        digest = receive(tmp_path, 3_000_000, "000000-recon.h5")
        until(lambda: mirrored(stack, "000000-recon.h5") == digest, "mirrored")
        assert stack.shell("tickets", "ls /artefacts /data") == "/artefacts:\n\n/data:"
        tables = stack.shell("postgres", "PGPASSWORD=$(cat /keys/database) psql -h 127.0.0.1 -U delivery -c '\\dt'")
        assert {"tickets", "sync_batches"} <= set(tables.split())
        for service in stack.containers():
            assert stack.inspect(service)["HostConfig"]["CapDrop"] == ["ALL"], service
    assert left() == []
