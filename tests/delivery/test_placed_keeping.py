"""What a kill between two steps leaves, made step by step on both databases, and what the next start makes of it."""

import asyncio
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from blake3 import blake3
from sqlalchemy.exc import DBAPIError

from delivery.database import open_database
from delivery.placed import api
from delivery.placed.disk import Disk, NoRoom, identify
from delivery.placed.keeping import Keeper
from delivery.placed.messages import File, Have, Offer, Poison, decode
from delivery.placed.peer import Copy
from delivery.placed.register import Register, State
from delivery.placed.rules import Site

CONTENT = b"content"


def a_file(place: str, name: str = "a") -> File:
    digest = blake3(CONTENT).hexdigest()
    return File(id=identify(name, "", digest), name=name, size=len(CONTENT), blake3=digest, place=place)


@pytest.fixture
def keeper(tmp_path: Path, database_url: str):
    engine, disk = open_database(database_url), Disk(tmp_path / "zero")
    yield Keeper(Register(engine, Site.ZERO, lambda: 1000.0), disk)
    disk.close()
    engine.dispose()


def aside(keeper: Keeper) -> Path:
    path = keeper.disk.new()
    path.write_bytes(CONTENT)
    return path


def left(keeper: Keeper) -> list[str]:
    return [path.name for path, _, _ in keeper.disk.incoming()]


def refuse(_file: File) -> None:
    raise DBAPIError("", {}, OSError("the disk is full"))


def due(keeper: Keeper) -> list[type]:
    return [type(decode(post.body)) for post in keeper.register.due_posts(10)]


def test_an_upload_without_a_record_is_deleted(keeper):
    aside(keeper)
    keeper.disk.ready(aside(keeper), a_file("zero").id)
    keeper.recover()
    assert left(keeper) == list(keeper.disk.ids()) == []


@pytest.mark.parametrize(
    ("place", "state", "posts"), [("zero", "here", []), ("one", "leaving", [Offer]), ("both", "here", [Offer])]
)
def test_an_upload_on_record_is_filed(keeper, place, state, posts):
    file = a_file(place)
    keeper.disk.ready(aside(keeper), file.id)
    keeper.register.take(file)
    assert keeper.disk.find(file.id).read_bytes() == CONTENT  # read where it lies
    keeper.recover()
    assert list(keeper.disk.ids()) == [file.id]
    assert left(keeper) == []
    assert keeper.register.find(file.id).state == state
    assert due(keeper) == posts


def test_a_fetch_goes_on_and_one_that_was_whole_is_verified_again(keeper):
    halves, whole = a_file("zero", "halves"), a_file("zero", "whole")
    for file in (halves, whole):
        keeper.register.offered(file)
    keeper.disk.part(halves.id).write_bytes(CONTENT[:3])
    keeper.disk.ready(aside(keeper), whole.id)
    keeper.recover()
    assert keeper.disk.part(halves.id).read_bytes() == CONTENT[:3]
    assert keeper.disk.part(whole.id).read_bytes() == CONTENT
    keeper.keep_fetched(whole.id)
    assert list(keeper.disk.ids()) == [whole.id]
    assert due(keeper) == [Have]


def test_an_upload_of_what_is_being_fetched_is_kept_and_the_sender_is_told(keeper):
    file = a_file("zero")
    keeper.register.offered(file)
    keeper.keep(aside(keeper), file)
    assert keeper.register.find(file.id).state is State.HERE
    assert due(keeper) == [Have]


def test_a_file_is_let_go_once_and_can_come_again(keeper):
    file = a_file("one")
    keeper.keep(aside(keeper), file)
    keeper.disk.delete(file.id)  # killed here: the record is still to be changed
    assert due(keeper) == [Offer]
    for _ in range(2):
        keeper.let_go(file.id)
    assert keeper.register.find(file.id).state is State.SENT
    assert due(keeper) == []
    keeper.keep(aside(keeper), file)
    assert keeper.register.find(file.id).state is State.LEAVING


def test_offers_are_answered_each_time_and_answers_sent_once(keeper):
    file = a_file("zero")
    keeper.keep(aside(keeper), file)
    for _ in range(3):
        keeper.register.offered(file)
    posts = keeper.register.due_posts(10)
    assert [decode(post.body) for post in posts] == [Have(sender="zero", id=file.id)]
    keeper.register.posted([post.number for post in posts])
    assert due(keeper) == []


def test_an_offer_is_repeated_until_it_is_answered(keeper):
    file = a_file("one")
    keeper.keep(aside(keeper), file)
    keeper.register.posted([post.number for post in keeper.register.due_posts(10)])
    assert due(keeper) == []  # its time comes
    keeper.register.hurry()
    assert due(keeper) == [Offer]


def test_an_upload_that_can_not_be_recorded_leaves_what_lay_there(keeper, monkeypatch):
    """Its record may be lost, and it the only copy."""
    file = a_file("zero")
    keeper.disk.ready(aside(keeper), file.id)
    keeper.disk.file(file.id)
    monkeypatch.setattr(keeper.register, "take", refuse)
    with pytest.raises(DBAPIError):
        keeper.keep(aside(keeper), file)
    assert left(keeper) == []
    assert list(keeper.disk.ids()) == [file.id]


def test_a_fetch_that_is_gone_on_with_needs_room_for_the_rest_alone(keeper, monkeypatch):
    part = keeper.disk.part("0" * 32)
    part.write_bytes(bytes(60))
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=100))
    keeper.disk.make_room(150, part)
    with pytest.raises(NoRoom):
        keeper.disk.make_room(161, part)


def test_an_answer_is_made_sure_of_and_offered_again_if_it_is_not_true(keeper):
    file = a_file("one")
    keeper.keep(aside(keeper), file)
    sent = [post.number for post in keeper.register.due_posts(10)]
    for _ in range(2):  # it may come twice, and before it is noted that the offer has left
        keeper.register.answered(file.id)
    keeper.register.posted(sent)
    assert due(keeper) == []
    assert [entry.file for entry in keeper.register.due_moves(10)] == [file]  # after a kill, too
    keeper.register.put_off(file.id, "its copy is damaged")
    assert keeper.register.due_moves(10) == due(keeper) == []
    keeper.register.hurry()
    assert due(keeper) == [Offer]
    assert keeper.register.find(file.id).reason == "its copy is damaged"


def test_a_file_that_comes_again_is_offered_again(keeper):
    file = a_file("both")
    keeper.keep(aside(keeper), file)
    keeper.register.answered(file.id)
    keeper.let_go(file.id)
    assert due(keeper) == []
    keeper.keep(aside(keeper), file)
    assert due(keeper) == [Offer]
    assert keeper.register.find(file.id).state is State.HERE


def test_whoever_asks_hears_that_a_file_is_still_read(monkeypatch):
    read = threading.Event()
    monkeypatch.setattr(api, "SIGN", 0.01)

    def copies() -> Iterator[str]:
        for id_ in "xy":
            read.clear()
            yield Copy(id=id_, bytes="good" if read.wait(30) else "late").model_dump_json() + "\n"

    async def ask() -> list[str]:
        said = []
        async for part in api._with_signs(copies()):
            said.append(part)
            if part == " ":
                read.set()
        return said

    said = asyncio.run(ask())
    assert (said[0], said.count(" ") >= 2) == (" ", True)
    found = [Copy.model_validate_json(line) for line in "".join(said).splitlines()]
    assert [(copy.id, copy.bytes) for copy in found] == [("x", "good"), ("y", "good")]


def test_what_is_set_aside_again_while_it_is_replayed_is_not_forgotten_with_it(keeper):
    for reason in ("first", "again"):
        keeper.register.set_aside(b"rubbish", reason)
    [message] = keeper.register.aside()
    assert message["reason"] == "again"
    assert not keeper.register.forget_aside(message["number"] - 1)
    assert keeper.register.find_aside(message["number"]) == b"rubbish"


def test_an_offer_that_contradicts_the_record_is_poison(keeper):
    file = a_file("zero")
    keeper.keep(aside(keeper), file)
    for change in ({"blake3": "0" * 64}, {"size": 1}, {"name": "b"}, {"place": "one"}):
        with pytest.raises(Poison):
            keeper.register.offered(File.model_validate(file.model_dump() | change))
    assert due(keeper) == []
