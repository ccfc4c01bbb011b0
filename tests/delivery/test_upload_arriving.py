"""Chunks that are written while they come: what counts is whole, whoever else sends the same chunk, or damage."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from unittest.mock import Mock

import httpx
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from delivery.database import open_database
from delivery.people.accounts import Person, Role
from delivery.upload.along import Along
from delivery.upload.arriving import Arrival
from delivery.upload.digests import Kind, Proof
from delivery.upload.intake import Intake, Refused, Terms
from delivery.upload.ledger import Ledger, Upload
from delivery.upload.stores import Gone, open_store
from tests.delivery.intake_service import Intake as Service
from tests.delivery.intake_service import intake, made, tree
from tests.delivery.sync_programs import until
from tests.delivery.test_upload import raw

SIZE, PART = 1 << 20, 256 << 10


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with intake(tmp_path_factory.mktemp("intake")) as running:
        yield running


def on_its_way(service: Service, upload: str, sent: bytes, digest: str) -> "Line":
    """Send the beginning of chunk 0, and wait until it lies in its place."""
    line = Line(raw(service, upload, f"Content-Length: {SIZE}\r\ncontent-blake3: {digest}\r\n", sent))
    path = service.store / ".uploads" / upload
    until(lambda: path.read_bytes().startswith(sent[:1000]), "the beginning to be written")
    return line


class Line:
    """A connection on which a chunk is under way."""

    def __init__(self, line) -> None:
        self._line = line

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, *_: object) -> None:
        self._line.close()

    def end(self, rest: bytes) -> int:
        """Send the rest, and return the status of the answer."""
        self._line.sendall(rest)
        return int(self._line.recv(100).split()[1])


def digest(content: bytes) -> str:
    return blake3(content).hexdigest()


def only_file(service: Service, upload: str, content: bytes) -> bytes:
    place = made(service.finalise(upload, tree(content, SIZE)))["place"]
    return (service.store / place).read_bytes()


@pytest.mark.parametrize(("same", "status"), [(False, 406), (True, 201)])
def test_a_slow_request_does_not_write_over_what_another_one_brought(service, same, status):
    good = os.urandom(SIZE)
    slows = good if same else os.urandom(SIZE)
    upload = service.prepare("slow.h5", SIZE, SIZE)
    with on_its_way(service, upload, slows[:PART], digest(slows)) as slow:
        made(service.put(upload, 0, good))
        assert slow.end(slows[PART:]) == status
    assert only_file(service, upload, good) == good


def test_damage_that_was_written_is_replaced(service):
    content = os.urandom(SIZE)
    upload = service.prepare("damaged.h5", SIZE, SIZE)
    with on_its_way(service, upload, b"x" + content[1:PART], digest(content)) as line:
        assert line.end(content[PART:]) == 406
    assert service.status(upload)["received"] == 0
    with on_its_way(service, upload, b"y" + content[1:PART], digest(content)):
        pass  # cut
    made(service.put(upload, 0, content))
    assert only_file(service, upload, content) == content


def test_chunks_on_their_way_take_no_memory_from_others(tmp_path):
    content = os.urandom(SIZE)
    with intake(tmp_path, "--memory", "1MiB") as service:
        upload = service.prepare("a.h5", SIZE, SIZE)
        with on_its_way(service, upload, content[:PART], digest(content)):
            other = service.prepare("b.h5", SIZE, SIZE)
            made(service.put(other, 0, content))


@pytest.fixture(scope="module")
def taken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    engine = open_database(f"sqlite:///{folder}/intake.db")
    ledger, store = Ledger(engine, 1000.0), open_store(str(folder / "store"), spare=0)
    along = Along(ledger, store, b"")
    yield Intake(ledger, store, along, Terms(0, 1000, 1000))
    along.close()
    engine.dispose()


CONTENTS = b"a" * 30, b"b" * 30
ADA = Person("ada", Role.OPERATOR)


class Sender:
    """Sends one of the contents for chunk 0, part by part; now and then another byte than it means."""

    def __init__(self, intake: Intake, upload: Upload, content: bytes, *, damaged: bool) -> None:
        self._intake = intake
        self._arrival: Arrival = intake.arrive(upload, 0, 30, Proof(Kind.BLAKE3, digest(content)))
        sent = content[:15] + b"x" + content[16:] if damaged else content
        self.refused = 0
        self._parts = [sent[start : start + 10] for start in range(0, 30, 10)]

    def go_on(self) -> bool:
        """Send the next part, or settle; return whether there is more to do."""
        if self._parts:
            self._arrival.add([self._parts.pop(0)])
            return True
        try:
            self._intake.settle(self._arrival)
        except Refused as error:
            self.refused = error.status
        finally:
            self.leave()
        return False

    def leave(self) -> None:
        self._intake.leave(self._arrival)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_whatever_the_order_of_their_parts_what_counts_is_in_its_place(taken, data):
    with ExitStack() as leaving:
        send_in_any_order(taken, data, leaving)


def send_in_any_order(taken: Intake, data: st.DataObject, leaving: ExitStack) -> None:
    upload = taken.announce(ADA, f"{os.urandom(8).hex()}.h5", 30, 30)
    kinds = st.tuples(st.sampled_from(CONTENTS), st.booleans())
    chosen = data.draw(st.lists(kinds, min_size=1, max_size=4))
    senders = [Sender(taken, upload, content, damaged=damaged) for content, damaged in chosen]
    for sender in senders:
        leaving.callback(sender.leave)
    while senders:
        sender = data.draw(st.sampled_from(senders))
        if not sender.go_on():
            senders.remove(sender)
            counted = taken.ledger.chunk(upload.id, 0)
            assert sender.refused in (0, 406, 503)
    if any(not damaged for _, damaged in chosen) and counted is None:
        taken.keep(upload, 0, 30, [chosen[0][0]], Proof(Kind.BLAKE3, digest(chosen[0][0])))  # as a refused sender would
        counted = taken.ledger.chunk(upload.id, 0)
    if counted:
        assert blake3(b"".join(taken.store.read(upload.slot, 0, 30))).digest() == counted.blake3


def test_nobody_takes_a_place_that_is_being_filled(taken, monkeypatch):
    upload = taken.announce(ADA, f"{os.urandom(8).hex()}.h5", 30, 30)
    put, late = taken.store.put, []

    def meanwhile(*given: object) -> None:
        put(*given)
        late.append(taken.arrive(upload, 0, 30, Proof(Kind.BLAKE3, digest(CONTENTS[1]))))

    monkeypatch.setattr(taken.store, "put", meanwhile)
    taken.keep(upload, 0, 30, [CONTENTS[0]], Proof(Kind.BLAKE3, digest(CONTENTS[0])))
    late[0].add([CONTENTS[1]])
    taken.leave(late[0])
    assert b"".join(taken.store.read(upload.slot, 0, 30)) == CONTENTS[0]


def test_a_place_that_was_filled_just_now_is_not_taken(taken, monkeypatch):
    upload = taken.announce(ADA, f"{os.urandom(8).hex()}.h5", 30, 30)
    chunk, proof = taken.ledger.chunk, Proof(Kind.BLAKE3, digest(CONTENTS[0]))

    def meanwhile(*given: object) -> object:
        monkeypatch.setattr(taken.ledger, "chunk", chunk)
        before = chunk(*given)
        taken.keep(upload, 0, 30, [CONTENTS[0]], proof)
        return before

    monkeypatch.setattr(taken.ledger, "chunk", meanwhile)
    late = taken.arrive(upload, 0, 30, Proof(Kind.BLAKE3, digest(CONTENTS[1])))
    late.add([CONTENTS[1]])
    assert b"".join(taken.store.read(upload.slot, 0, 30)) == CONTENTS[0]


@pytest.mark.parametrize("round_", range(20))
def test_many_at_once_leave_a_chunk_that_is_right(taken, round_):
    upload = taken.announce(ADA, f"{os.urandom(8).hex()}.h5", 30, 30)
    barrier = threading.Barrier(6)

    def send(number: int) -> None:
        barrier.wait()
        sender = Sender(taken, upload, CONTENTS[(number + round_) % 2], damaged=number % 3 == 0)
        while sender.go_on():
            pass

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(send, range(6)))
    counted = taken.ledger.chunk(upload.id, 0)
    if counted:
        assert blake3(b"".join(taken.store.read(upload.slot, 0, 30))).digest() == counted.blake3


def test_a_place_is_free_again_after_a_fault_of_the_database(taken, monkeypatch):
    upload = taken.announce(ADA, f"{os.urandom(8).hex()}.h5", 30, 30)
    good = Proof(Kind.BLAKE3, digest(CONTENTS[0]))
    with monkeypatch.context() as faulty:
        faulty.setattr(taken.ledger, "chunk", Mock(side_effect=OSError("gone")))
        with pytest.raises(OSError, match="gone"):
            taken.arrive(upload, 0, 30, good)
    arrival = taken.arrive(upload, 0, 30, good)
    arrival.add([CONTENTS[0]])
    assert b"".join(taken.store.read(upload.slot, 0, 30)) == CONTENTS[0]


def test_what_has_ended_meanwhile_is_told_to_all(taken):
    upload = taken.announce(ADA, f"{os.urandom(8).hex()}.h5", 30, 30)
    first, second = (taken.arrive(upload, 0, 30, Proof(Kind.BLAKE3, digest(CONTENTS[0]))) for _ in range(2))
    for arrival in (first, second):
        arrival.add([CONTENTS[0]])
    taken.settle(second)
    taken.cancel(upload, "ada")
    with pytest.raises(Refused) as refused:
        taken.settle(first)
    assert refused.value.status == 410
    for arrival in (first, second):
        taken.leave(arrival)


def test_nothing_is_written_to_a_file_that_has_its_name(taken):
    upload = taken.announce(ADA, f"{os.urandom(8).hex()}.h5", None, 10)
    late = taken.arrive(upload, 5, 10, Proof(Kind.BLAKE3, digest(b"z" * 10)))
    taken.keep(upload, 0, 10, [b"0123456789"], Proof(Kind.BLAKE3, digest(b"0123456789")))
    whole = Proof(Kind.TREE, blake3(blake3(b"0123456789").digest()).hexdigest())
    stored = taken.finalise(upload, whole, size=10)
    with pytest.raises(Gone):
        late.add([b"z" * 10])
    assert b"".join(taken.store.read(stored.slot, 0, 10)) == b"0123456789"


def test_uploads_by_tus_take_no_chunks_at_this_door(service):
    headers = {"Tus-Resumable": "1.0.0", "Upload-Length": "1000"}
    path = service.operator.post("/tus/", headers=headers).headers["location"]
    upload = path.rstrip("/").rpartition("/")[2]
    assert service.put(upload, 0, bytes(1000)).status_code == 404
    known = service.operator.post(f"/upload/{upload}/known", json={"chunks": {"0": digest(bytes(1000))}})
    assert known.status_code == 404


def test_a_service_answers_while_chunks_come(service):
    upload = service.prepare("open.h5", SIZE, SIZE)
    content = os.urandom(SIZE)
    with on_its_way(service, upload, content[:PART], digest(content)):
        assert httpx.get(f"{service.url}/healthz").status_code == 200
