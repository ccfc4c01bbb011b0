"""Rules, bits and messages: without a disk or a network."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some
from pydantic import ValidationError

from delivery.placed.bits import PIECE, count_ones
from delivery.placed.disk import identify
from delivery.placed.messages import LONGEST, File, Have, Hello, Offer, Poison, Probe, decode, encode
from delivery.placed.rules import About, Place, Site, find_rule
from ministream.base.errors import UserError


def by_content(about: About) -> str:
    """A user's rule, which reads the file."""
    return "zero" if about.path.read_bytes().startswith(b"z") else "one"


def judged(words: str, content: bytes = b"", name: str = "a.h5", project: str = "", block: int = 7) -> Place | None:
    judge = find_rule(words)()
    for start in range(0, len(content), block):
        judge.see(memoryview(content)[start : start + block])
    return judge.place(About(name, len(content), project, Path()))


@given(some.binary(max_size=300), some.integers(0, 9))
def test_ones_are_counted_at_any_length_and_alignment(content, start):
    expected = int.from_bytes(content[start:]).bit_count()
    assert count_ones(memoryview(content)[start:]) == expected


def test_ones_are_counted_over_pieces():
    assert count_ones(b"\xff" * (8 * PIECE * 2 + 9)) == 8 * (8 * PIECE * 2 + 9)


@given(some.binary(max_size=200), some.integers(1, 50))
def test_bits_decide_however_they_come(content, block):
    ones = int.from_bytes(content).bit_count()
    zeros = 8 * len(content) - ones
    expected = {True: Place.ZERO, False: Place.ONE}[zeros > ones] if zeros != ones else None
    assert judged("bits", content, block=block) is expected


@pytest.mark.parametrize(
    ("words", "about", "place"),
    [
        ("size:1kB", {"content": bytes(1000)}, "zero"),
        ("size:1kB", {"content": bytes(1001)}, "one"),
        ("type:h5,tif", {"name": "A.H5"}, "zero"),
        ("type:.h5", {"name": "h5"}, "one"),
        ("project:raw, dark", {"project": "dark"}, "zero"),
        ("project:raw", {}, "one"),
    ],
)
def test_facts_decide(words, about, place):
    assert judged(words, **about) == place


@pytest.mark.parametrize("words", ["", "bits:8", "size", "size:-1", "type:", "project", "nosuch", "os:nosuch", "a b:c"])
def test_rules_that_are_none_are_refused(words):
    with pytest.raises(UserError):
        find_rule(words)


def test_another_package_adds_a_rule(tmp_path, monkeypatch):
    (tmp_path / "theirs.py").write_text(
        "from delivery.placed.rules import Facts, Place\n"
        "def make(words):\n    return lambda: Facts(lambda about: Place(words))\n"
    )
    info = tmp_path / "theirs-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[delivery.placed_rules]\nours = theirs:make\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert judged("ours:both") is Place.BOTH


names = some.text(some.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=63).filter(
    lambda name: "/" not in name and name not in (".", "..")
)
files = some.builds(
    File,
    id=some.from_regex(r"[0-9a-f]{32}", fullmatch=True),
    name=names | some.just('"' * 255),
    size=some.integers(0, (1 << 63) - 1),
    blake3=some.from_regex(r"[0-9a-f]{64}", fullmatch=True),
    project=some.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", fullmatch=True),
    place=some.sampled_from(Place),
)


@given(
    some.builds(Offer, sender=some.sampled_from(Site), file=files)
    | some.builds(Hello, sender=..., rule=some.text(max_size=40))
    | some.builds(Probe, sender=..., id=some.from_regex(r"[0-9a-f]{32}", fullmatch=True))
)
def test_messages_are_short_and_read_as_they_were_written(message):
    assert len(encode(message)) <= LONGEST
    assert decode(encode(message)) == message


@given(some.binary(max_size=200) | some.text(max_size=200).map(str.encode))
def test_rubbish_is_poison(body):
    with pytest.raises(Poison):
        decode(body)


@pytest.mark.parametrize(
    "change",
    [{"kind": "drop"}, {"version": 2}, {"id": "../../etc/passwd"}, {"id": "0" * 31}, {"more": 1}, {"sender": "two"}],
)
def test_a_message_that_says_more_or_other_than_it_may_is_poison(change):
    good = Have(sender="zero", id="0" * 32).model_dump()
    decode(json.dumps(good).encode())
    with pytest.raises(Poison):
        decode(json.dumps(good | change).encode())


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0", "a\nb", "\ud800", "é" * 128])
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(ValidationError):
        File(id="0" * 32, name=name, size=0, blake3="0" * 64, place="both")


def test_an_id_tells_name_project_and_content_apart():
    parts = [("a", "b", "c"), ("ab", "", "c"), ("a", "", "bc"), ("", "ab", "c")]
    assert len({identify(*part) for part in parts}) == len(parts)
