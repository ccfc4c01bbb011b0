"""Artefacts in a local folder and in S3, as SeaweedFS serves it."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from delivery.stores import PART, Store
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


@pytest.fixture(params=["folder", "s3"])
def store(request, tmp_path) -> Store:
    if request.param == "folder":
        return Store(str(tmp_path / "store"))
    request.getfixturevalue("seaweed")
    return Store("s3://artefacts")


def test_what_is_put_is_got_in_any_range(store):
    content = os.urandom(2 * PART + 12_345)
    blocks = (content[at : at + 1_000_003] for at in range(0, len(content), 1_000_003))
    assert store.put_stream("tickets/a b/größe.zip", blocks) == len(content)
    stored = store.open("tickets/a b/größe.zip", '"tag"')
    assert (stored.length, stored.etag) == (len(content), '"tag"')
    for start, stop in ((0, len(content)), (PART - 1, PART + 1), (5, 5), (len(content) - 1, len(content))):
        assert b"".join(stored.read(start, stop)) == content[start:stop]


def test_keys_are_listed_and_deleted(store):
    for key in ("one/a", "one/b", "two/c"):
        store.put_stream(key, [b"x"])
    assert store.keys("one") == ["one/a", "one/b"]
    store.delete("one/a")
    store.delete("one/a")
    assert store.keys("one") == ["one/b"]
    assert store.size("one/a") is None
    with pytest.raises(FileNotFoundError, match="one/a"):
        store.open("one/a", '"tag"')


def test_what_breaks_off_is_not_there_and_is_told_as_what_it_was(store):
    def broken() -> Iterator[bytes]:
        yield bytes(PART + 1)
        raise UserError("the source has changed")

    with pytest.raises(UserError, match="the source has changed"):
        store.put_stream("broken/a", broken())
    assert store.keys("broken") == []


def test_what_replaces_an_artefact_is_whole(store):
    store.put_stream("again", [b"first, and longer"])
    store.put_stream("again", [b"second"])
    assert b"".join(store.open("again", '"tag"').read(0, 6)) == b"second"
    assert store.size("again") == 6


@pytest.mark.parametrize("url", ["gopher://there", "s3://"])
def test_a_url_that_names_no_store_is_refused(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="store"):
        Store(url)


@pytest.mark.parametrize("key", ["../outside", "/../../outside"])
def test_no_key_leads_out_of_the_folder(tmp_path, key):
    store = Store(str(tmp_path / "store"))
    with pytest.raises(UserError):
        store.put_stream(key, [b"x"])
    assert not (tmp_path / "outside").exists()


def test_what_can_not_be_written_is_told_in_words(tmp_path):
    store = Store(str(tmp_path / "store"))
    (tmp_path / "store" / "file").write_bytes(b"no folder")
    with pytest.raises(UserError, match="file/below"):
        store.put_stream("file/below", [b"x"])
