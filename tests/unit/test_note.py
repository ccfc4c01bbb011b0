"""Notes: what is told arrives as it was, what is broken, too long or forged is refused."""

import json
import zlib
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from aps_mini_apps.wire import WireError, note
from aps_mini_apps.wire.note import Farewell, Note

EVENT = {
    "time": "2026-11-21T16:09:20.306461Z",
    "level": "info",
    "service": "daq",
    "event": "scan started",
    "rows": 16,
    "center": 19.5,
    "source": "Zahn µCT",
    "last": True,
    "synch": None,
}
VALUES = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=60)
NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,39}", fullmatch=True).filter(lambda name: name not in note._RESERVED)
NOTES = st.builds(
    Note,
    time=st.just(EVENT["time"]),
    level=st.sampled_from(["debug", "info", "warning", "error"]),
    service=st.sampled_from(["daq", "dist"]),
    event=TEXTS,
    fields=st.dictionaries(NAMES, VALUES | TEXTS, max_size=note.MAX_FIELDS),
)


def sealed(content: object) -> bytes:
    """Return a message whose checksum holds, whatever is in it."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return note.MAGIC + zlib.crc32(body).to_bytes(4, "little") + body


def is_refused(message: bytes) -> bool:
    """Any exception but WireError fails the test."""
    try:
        note.decode(message)
    except WireError:
        return True
    return False


@given(NOTES | st.builds(note.farewell, TEXTS))
def test_what_is_said_arrives(said: Note | Farewell) -> None:
    message = note.encode(said)
    arrived = note.decode(message)
    assert arrived == said
    assert type(arrived) is type(said)
    assert note.is_note(message)


def test_an_event_of_the_log_is_told_as_it_is() -> None:
    assert note.decode(note.encode(Note.from_event(EVENT))).as_event() == EVENT  # type: ignore[union-attr]


def test_every_truncation_and_every_changed_byte_is_refused() -> None:
    for said in (Note.from_event(EVENT), note.farewell("SIGTERM")):
        message = note.encode(said)
        assert all(is_refused(message[:end]) for end in range(len(message)))
        assert is_refused(message + b"\0")
        for place in range(len(message)):
            for flip in range(1, 256):
                changed = bytearray(message)
                changed[place] ^= flip
                assert is_refused(bytes(changed)), (place, flip)


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 255)), min_size=1, max_size=12))
def test_random_damage_is_refused(damage: list[tuple[int, int]]) -> None:
    message = note.encode(Note.from_event(EVENT))
    changed = bytearray(message)
    for place, byte in damage:
        changed[place % len(changed)] = byte
    assume(changed != message)
    assert is_refused(bytes(changed))


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_rubbish_is_refused_whether_its_checksum_holds_or_not(data: bytes) -> None:
    assert is_refused(data)
    assert is_refused(sealed(data))


JSON = st.recursive(
    VALUES | TEXTS | st.just(float("nan")), lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=5
)


@given(st.dictionaries(st.sampled_from(["time", "level", "service", "event", "fields", "reason", "via"]), JSON))
def test_a_liar_that_signs_gets_a_reason_or_says_something_within_bounds(content: dict[str, Any]) -> None:
    message = sealed(content)
    if not is_refused(message):
        assert set(content) in ({"reason"}, set(content) & set(WHOLE))
        assert len(note.encode(note.decode(message))) <= note.MAX_BYTES


WHOLE = {name: EVENT[name] for name in ("time", "level", "service", "event")} | {"fields": {}}


@pytest.mark.parametrize(
    "change",
    [
        {"service": "sirt"},
        {"service": "daq\n16:00 error sirt"},
        {"level": "critical"},
        {"time": "2026-11-21T16:09:20.306461Z\nx"},
        {"time": "now"},
        {"time": "٢٠٢٦-11-21T16:09:20Z"},
        {"event": "x" * (note.MAX_TEXT + 1)},
        {"event": 7},
        {"via": ""},
        {"fields": {"service": "sirt"}},
        {"fields": {"via": ""}},
        {"fields": {"exception": "Traceback\n12:00 error sirt forged"}},
        {"fields": {"exc_info": True}},
        {"fields": {"Rows": 1}},
        {"fields": {"a b": 1}},
        {"fields": {"a": {"b": 1}}},
        {"fields": {"a": "x" * (note.MAX_TEXT + 1)}},
        {"fields": {"a": 10**400}},
        {"fields": {"a": float("nan")}},
        {"fields": {f"a{k}": k for k in range(note.MAX_FIELDS + 1)}},
    ],
)
def test_a_note_that_forges_or_floods_is_refused(change: dict[str, object]) -> None:
    assert not is_refused(sealed(WHOLE))
    assert is_refused(sealed(WHOLE | change))


def test_a_message_beyond_the_limit_is_neither_sent_nor_taken() -> None:
    assert is_refused(sealed(b'{"reason": "x"' + b" " * note.MAX_BYTES + b"}"))
    fields = {f"a{k}": "\0" * note.MAX_TEXT for k in range(note.MAX_FIELDS)}
    with pytest.raises(WireError, match="at most 65536 may be sent"):
        note.encode(Note.from_event(EVENT | fields))


@given(st.dictionaries(NAMES, st.text() | st.floats() | st.integers() | st.binary() | st.tuples(st.text())))
def test_any_event_is_told_or_refused(fields: dict[str, object]) -> None:
    """Whatever a program logs, telling it does no harm."""
    try:
        message = note.encode(Note.from_event(EVENT | fields))
    except WireError:
        return
    said = note.decode(message)
    assert isinstance(said, Note)
    assert len(said.fields) <= note.MAX_FIELDS


def test_what_is_too_long_is_shortened() -> None:
    said = Note.from_event(EVENT | {"path": "x" * 5000, "exception": "Traceback"})
    assert said.fields["path"] == "x" * (note.MAX_TEXT - 1) + "…"
    assert "exception" not in said.fields
    assert len(note.farewell("y" * 5000).reason) == note.MAX_TEXT
