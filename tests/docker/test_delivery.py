"""Delivery in containers: mirrored, fetched by ticket, locked down, and gone without a trace."""

import hashlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.delivery.sync_programs import until
from tests.docker.conftest import MARKS, alone, command, docker, inspect
from tests.docker.delivery_stack import OUTPUT, Delivery, fetch, left, mirrored, place, ports, receive, started, take

pytestmark = [
    *MARKS,
    pytest.mark.timeout(900),
]

LARGEST = 450e6
DIES_AT_THE_FIRST_BYTES = "until [ -s /media/live/download/.h5/part ]; do :; done; kill -9 -1"


@pytest.fixture(scope="module")
def delivery(delivery_image: str) -> Iterator[Delivery]:  # noqa: ARG001 - a condition
    """All ways out, with everything embedded."""
    with alone(), started("sync", "tickets", "upload", "placed", ports=ports(), settings={"INTERVAL": "1"}) as stack:
        yield stack


def test_a_file_can_be_fetched_by_ticket_from_outside(delivery: Delivery, tmp_path: Path) -> None:
    digest = receive(tmp_path, 3_000_000, "scan.bin")
    assert hashlib.sha256(fetch(delivery, "scan.bin")).hexdigest() == digest
    assert "Downloads" in httpx.get(delivery.tickets).text


def test_the_intake_takes_what_the_receiver_wrote(delivery: Delivery, tmp_path: Path) -> None:
    digest = receive(tmp_path, 3_000_000, "taken.bin")
    assert take(delivery, "taken.bin") == digest


def test_a_broker_that_is_killed_in_the_middle_goes_on_and_files_are_archived_once(
    delivery: Delivery, tmp_path: Path
) -> None:
    with ThreadPoolExecutor() as pool:
        dying = pool.submit(delivery.shell, "broker", DIES_AT_THE_FIRST_BYTES, check=False)
        digest = receive(tmp_path, 64_000_000, "000000-recon.h5")
        dying.result()
    until(lambda: mirrored(delivery, "000000-recon.h5") == digest, "mirrored")
    assert delivery.inspect("broker")["RestartCount"] == 1
    assert re.findall(r"path=/stream/live/h5 +status=(20\d)", delivery.log("server")) == ["200", "206"]
    until(lambda: delivery.shell("server", "ls /media/live/archive") == "000000-recon.h5", "archived")
    assert delivery.shell("server", "ls /receiver/*.h5", check=False) == ""
    assert len(delivery.shell("broker", "ls /media/live/download/*.zip").split()) == 1


def test_a_file_ends_at_the_site_where_it_belongs(delivery: Delivery) -> None:
    place(delivery, {"ones.bin": "one", "zeros.bin": "zero"})


def test_containers_may_do_no_more_than_they_need(delivery: Delivery) -> None:
    containers = delivery.containers()
    assert set(containers) == {"keys", "server", "broker", "tickets", "intake", "zero", "one"}
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


def test_the_image_is_small_labelled_and_holds_neither_compiler_nor_secret(delivery_image: str) -> None:
    found = inspect(delivery_image)
    assert found["Size"] <= LARGEST
    assert found["Config"]["Labels"]["org.opencontainers.image.title"] == "Mini-Stream"
    script = "id -u; type -P cc gcc make pip pip3 s2cs; python3 -m pip -V; find /keys /broker /data -type f"
    assert docker("run", "--rm", "--network", "none", delivery_image, "bash", "-c", script, check=False) == "10001"


def test_nothing_is_left_but_what_is_the_receivers(delivery: Delivery) -> None:
    assert left()
    delivery("down", "--volumes", "--timeout", "5")
    assert left() == []
    assert docker("volume", "inspect", OUTPUT, "--format", "{{.Name}}") == OUTPUT
