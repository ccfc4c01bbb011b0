"""Delivery with the servers of production, and beside the pipeline, whose reconstructions leave."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.delivery.sync_programs import until
from tests.docker.conftest import MARKS, Stack, docker
from tests.docker.delivery_stack import (
    OUTPUT,
    Delivery,
    fetch,
    left,
    make_servers,
    mirrored,
    place,
    ports,
    receive,
    started,
    take,
)
from tests.docker.test_compose import QUICK, SMALL

pytestmark = [
    *MARKS,
    pytest.mark.long,
    pytest.mark.timeout(1800),
    pytest.mark.usefixtures("delivery_image"),
]


def tables(stack: Delivery, database: str) -> set[str]:
    """Return the tables that there are in a database of PostgreSQL's."""
    ask = "PGPASSWORD=$(cat /keys/database) psql -h 127.0.0.1 -U delivery -Atc 'SELECT relname FROM pg_class'"
    return set(stack.shell("postgres", f"{ask} {database}").split())


@pytest.mark.parametrize("compose", ["v1", "v2"])
def test_production_has_its_own_database_and_store(engine: None, tmp_path: Path, compose: str) -> None:  # noqa: ARG001
    settings = {
        "INTERVAL": "1",
        "DATABASE": "postgresql://delivery@postgres/delivery",
        "INTAKE_STORE": "s3://artefacts/uploads",
        "ZERO_DRIVER": "postgresql",
        "ONE_DRIVER": "postgresql",
        "KAFKA_PORT": "9092",
        "TICKETS_STORE": "s3://artefacts/tickets",
        **make_servers(tmp_path / "servers"),
    }
    profiles = ("sync", "tickets", "upload", "placed", "postgres", "s3", "kafka")
    with started(*profiles, ports=ports(), settings=settings, compose=compose) as stack:
        digest = receive(tmp_path, 3_000_000, "scan.bin")
        assert hashlib.sha256(fetch(stack, "scan.bin")).hexdigest() == digest
        assert take(stack, "scan.bin") == digest
        digest = receive(tmp_path, 3_000_000, "000000-recon.h5")
        until(lambda: mirrored(stack, "000000-recon.h5") == digest, "mirrored")
        assert stack.shell("tickets", "ls /artefacts /data") == "/artefacts:\n\n/data:"
        assert {"tickets", "sync_batches", "uploads"} <= tables(stack, "delivery")
        place(stack, {"ones.bin": "one", "zeros.bin": "zero"})
        for site in ("zero", "one"):
            assert "site.db" not in stack.shell(site, "ls /data")
            assert any(name.startswith("placed_") for name in tables(stack, site))
        assert "Undelivered" not in stack.log("zero") + stack.log("one")
        for service in stack.containers():
            assert stack.inspect(service)["HostConfig"]["CapDrop"] == ["ALL"], service
    assert left() == []


def test_what_the_receiver_wrote_is_mirrored(
    images: object,  # noqa: ARG001 - a condition
    stack: Callable[..., Stack],
    tmp_path: Path,
) -> None:
    docker("volume", "create", OUTPUT)
    pipeline = stack(producer=SMALL, receiver=QUICK, volumes={"name": OUTPUT, "external": True})
    assert pipeline.run().returncode == 0
    files = pipeline.files(tmp_path / "out")
    pipeline("down")
    assert files
    with started("sync", ports=ports(), settings={"INTERVAL": "1"}) as delivery:
        for file in files:
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            until(lambda name=file.name, digest=digest: mirrored(delivery, name) == digest, f"{file.name} mirrored")
