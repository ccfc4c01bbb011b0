"""Artefacts in a local folder and in S3, as SeaweedFS serves it."""

import os
from collections.abc import Iterator

import pytest

from delivery.stores import PART, Store
from ministream.base.errors import UserError


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
