"""Where uploads lie: one behaviour of files, S3 (SeaweedFS) and MongoDB (mongod)."""

import os
import random
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from blake3 import blake3

from delivery.database import open_database
from delivery.people.accounts import Person, Role
from delivery.upload.along import Along
from delivery.upload.digests import Kind, Proof
from delivery.upload.intake import Intake, Terms
from delivery.upload.ledger import Ledger, Upload
from delivery.upload.sender import Line
from delivery.upload.stores import ChunkStore, Gone, NoRoom, Slot, open_store
from ministream.base.errors import UserError
from tests.delivery.intake_service import intake as service
from tests.delivery.intake_service import made, tree

CHUNK = 5 << 20
"""The least that S3 takes."""


@pytest.fixture(params=["files", "s3", "mongodb"])
def store(request, tmp_path):
    if request.param == "files":
        yield open_store(str(tmp_path / "store"), spare=0)
    elif request.param == "s3":
        request.getfixturevalue("seaweed")
        yield open_store("s3://artefacts/uploads", spare=0)
    else:
        opened = open_store(f"{request.getfixturevalue('mongod')}/uploads", spare=0)
        yield opened
        opened.close()


def begun(store: ChunkStore, size: int, *, chunk_size: int = CHUNK, exact: bool = True) -> Slot:
    slot = Slot(os.urandom(8).hex(), f"ada/scan_7/größe {os.urandom(4).hex()}.h5", size, chunk_size)
    return slot._replace(handle=store.begin(slot, exact=exact))


def finished(store: ChunkStore, slot: Slot) -> Slot:
    slot = slot._replace(place=slot.name)
    store.finish(slot)
    return slot


def put_all(store: ChunkStore, slot: Slot, content: bytes) -> None:
    numbers = list(range(-(-len(content) // slot.chunk_size)))
    random.Random(7).shuffle(numbers)
    for number in [*numbers, *numbers[:1]]:  # one comes twice
        start = number * slot.chunk_size
        store.put(
            slot, number, [content[start : start + 100], memoryview(content)[start + 100 : start + slot.chunk_size]]
        )


def read(store: ChunkStore, slot: Slot, start: int, stop: int) -> bytes:
    return b"".join(store.read(slot, start, stop))


def test_chunks_in_any_order_become_the_file(store):
    content = os.urandom(2 * CHUNK + 12_345)
    slot = begun(store, len(content))
    put_all(store, slot, content)
    if store.readable:
        assert read(store, slot, 3, CHUNK + 3) == content[3 : CHUNK + 3]
    stored = finished(store, slot)
    for start, stop in [(0, len(content)), (CHUNK - 1, CHUNK + 1), (7, 7), (len(content) - 1, len(content))]:
        assert read(store, stored, start, stop) == content[start:stop]
    store.finish(stored)  # after a kill
    assert read(store, stored, 0, 100) == content[:100]


def test_what_has_ended_takes_no_more(store):
    slot = begun(store, 10)
    store.drop(slot)
    store.drop(slot)
    with pytest.raises(Gone):
        store.put(slot, 0, [b"too late"])


@pytest.fixture
def intake(store, tmp_path):
    engine = open_database(f"sqlite:///{tmp_path}/intake.db")
    ledger = Ledger(engine, 1000.0)
    along = Along(ledger, store, b"")
    yield Intake(ledger, store, along, Terms(0, CHUNK, CHUNK))
    along.close()
    engine.dispose()


def taken_in(intake: Intake, name: str, content: bytes) -> Upload:
    upload = intake.announce(Person("ada", Role.OPERATOR), name, len(content), CHUNK)
    intake.keep(upload, 0, len(content), [content], Proof(Kind.BLAKE3, blake3(content).hexdigest()))
    return intake.finalise(upload, None)


@pytest.mark.parametrize("names", [["x", "x/y"], ["x/y", "x"], ["n" * 240] * 2, ["p/" * 400 + "q"] * 2])
def test_whatever_their_names_what_is_stored_can_be_read(intake, names):
    folder = os.urandom(4).hex()
    for content, name in zip((b"first", b"second"), names, strict=True):
        stored = taken_in(intake, f"{folder}/{name}", content)
        assert stored.finished
        assert read(intake.store, stored.slot, 0, stored.size) == content


@pytest.mark.parametrize("store", ["files"], indirect=True)
@pytest.mark.parametrize("theirs", ["{}/x/y", "{}/x"])
def test_a_place_that_is_taken_in_the_last_moment_is_left_alone(intake, tmp_path, monkeypatch, theirs):
    folder, finish = os.urandom(4).hex(), intake.store.finish
    place = tmp_path / "store" / "ada" / theirs.format(folder)

    def meanwhile(slot: Slot) -> None:
        monkeypatch.setattr(intake.store, "finish", finish)
        place.parent.mkdir(parents=True)
        place.write_bytes(b"theirs")
        finish(slot)

    monkeypatch.setattr(intake.store, "finish", meanwhile)
    stored = taken_in(intake, f"{folder}/x/y", b"ours")
    assert b"".join(intake.store.read(stored.slot, 0, 4)) == b"ours"
    assert intake.ledger.get(stored.id) == stored
    assert place.read_bytes() == b"theirs"


def test_an_empty_file_is_one(store):
    stored = finished(store, begun(store, 0))
    assert read(store, stored, 0, 0) == b""


def test_a_size_that_was_an_upper_bound_becomes_the_files_own(store):
    slot = begun(store, 1 << 33, exact=False)
    store.put(slot, 0, [b"short"])
    stored = finished(store, slot._replace(size=5))
    assert read(store, stored, 0, 5) == b"short"


def test_large_chunks_become_children(mongod):
    store = open_store(f"{mongod}/children", spare=0)
    content = os.urandom(40 << 20)
    slot = begun(store, len(content), chunk_size=len(content))
    store.put(slot, 0, [content])
    assert store._children.count_documents({}) == 40
    assert read(store, finished(store, slot), 15_000_000, 33_000_000) == content[15_000_000:33_000_000]
    store.drop(slot)
    assert store._children.count_documents({}) == store._chunks.count_documents({}) == 0
    store.close()


@pytest.mark.parametrize(
    ("server", "url"), [("", "{}/store"), ("seaweed", "s3://artefacts/memory"), ("mongod", "{}/memory")]
)
def test_chunks_of_the_usual_size_take_little_memory(server, url, request, tmp_path):
    size, count = Line().chunk, 4
    where = request.getfixturevalue(server) if server else tmp_path
    content = os.urandom(size)
    digests = {"chunks": {number: blake3(content).hexdigest() for number in range(count)}}
    with ThreadPoolExecutor(8) as pool, service(tmp_path, "--store", url.format(where)) as running:
        first, *others = (running.prepare(f"{copy}.h5", count * size, size) for copy in range(3))
        for answer in pool.map(lambda number: running.put(first, number, content), range(count)):
            made(answer)
        made(running.finalise(first, tree(content * count, size)))
        known = [f"/upload/{other}/known" for other in others]
        for answer in pool.map(lambda path: running.operator.post(path, json=digests), known):
            assert answer.json() == {"held": list(range(count))}
        assert peak(running) < 150e6


def peak(running) -> int:
    """Return the most memory that a service has held, in bytes."""
    status = Path(f"/proc/{running.process.process.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) * 1024


def test_a_file_has_its_room_from_the_beginning_and_its_name_at_the_end(tmp_path):
    store = open_store(str(tmp_path), spare=0)
    slot = begun(store, 1_000_000)
    (waiting,) = (tmp_path / ".uploads").iterdir()
    assert waiting.stat().st_blocks * 512 >= 1_000_000
    assert not store.obstacle(slot.name)
    finished(store, slot)
    assert store.obstacle(slot.name) == slot.name
    assert not list((tmp_path / ".uploads").iterdir())


def test_what_somebody_put_in_the_files_place_is_left_alone(tmp_path):
    store = open_store(str(tmp_path), spare=0)
    slot = begun(store, 3)
    place = tmp_path / slot.name
    place.parent.mkdir(parents=True)
    place.write_bytes(b"theirs")
    with pytest.raises(UserError, match="somebody else"):
        finished(store, slot)
    assert place.read_bytes() == b"theirs"


def test_more_than_there_is_room_for_is_refused(tmp_path):
    with pytest.raises(NoRoom, match="are free"):
        begun(open_store(str(tmp_path), spare=0), 1 << 60)
    with pytest.raises(NoRoom, match="0 are free"):
        begun(open_store(str(tmp_path), spare=1 << 60), 1)
    assert not list((tmp_path / ".uploads").iterdir())


@pytest.mark.parametrize("url", ["gopher://there", "s3://", "mongodb://a:b:c/d"])
def test_a_url_that_names_no_store_is_refused(url):
    with pytest.raises(UserError, match="store"):
        open_store(url, spare=0)


@pytest.mark.usefixtures("seaweed")
def test_s3_says_which_chunks_it_needs():
    with pytest.raises(UserError, match="need chunks of"):
        begun(open_store("s3://artefacts", spare=0), 10_001 * CHUNK)


def test_a_server_that_is_not_there_is_told_in_words():
    store = open_store("mongodb://127.0.0.1:1/x?serverSelectionTimeoutMS=100", spare=0)
    with pytest.raises(UserError, match="MongoDB"):
        begun(store, 1)
    store.close()
