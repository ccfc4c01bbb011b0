"""TMQ: a session of upstream's real worker is understood, and ours has the same bytes."""

import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from aps_mini_apps.geometry import wrap_float32
from aps_mini_apps.wire import WireError, tmq

UINT32 = st.integers(0, 2**32 - 1)
NUMBERS = st.integers(0, 2**64 - 1)
TYPES = {
    "DATAINFO_REQ": tmq.InfoRequest,
    "DATAINFO_REP": tmq.InfoReply,
    "DATA_REQ": tmq.DataRequest,
    "DATA_REP": tmq.ProjectionData,
    "FIN_REP": tmq.Finish,
}


def data(**changes: object) -> tmq.ProjectionData:
    pixels = np.arange(6, dtype=np.float32).reshape(2, 3)
    return tmq.ProjectionData(**({"projection_id": 7, "theta": 1.5, "center": 1.25, "pixels": pixels} | changes))


EXAMPLES = [
    tmq.InfoRequest(rank=1, size=3),
    tmq.InfoReply(total_sinograms=9, first_sinogram=4, sinograms=3, columns=64),
    tmq.DataRequest(),
    data(),
    tmq.Finish(),
]


def refused(message: bytes | bytearray, **options: int) -> bool:
    """Whether it is refused; any exception but WireError fails the test."""
    try:
        tmq.decode(message, **options)
    except WireError:
        return True
    return False


# --- the recording


def recorded(folder: Path) -> list[tuple[dict, bytes]]:
    """Return each message of the session with its recorded bytes, which may be only its beginning."""
    session = json.loads((folder / "golden" / "tmq_worker.json").read_text())
    return [(entry, bytes.fromhex(entry["hex"].removesuffix("..."))) for entry in session]


def whole(entry: dict, known: bytes) -> bytes:
    """Complete a recorded message: a worker's body where the index tells it, rubbish for padding."""
    body = struct.pack("<2I", *entry["body"]) if entry.get("body") else b""
    return (known + body).ljust(entry["bytes"], b"\xa5")


def test_the_session_of_upstreams_worker_is_read(shared_data: Path) -> None:
    session = recorded(shared_data)
    assert {entry["type"] for entry, _ in session} == set(TYPES)
    for expected, (entry, known) in enumerate(session):
        number, message = tmq.decode(whole(entry, known), columns=64 if entry["type"] == "DATA_REP" else None)
        assert number == expected == entry.get("seq", expected)
        assert type(message) is TYPES[entry["type"]]
        if isinstance(message, tmq.InfoRequest):
            assert [message.rank, message.size] == entry["body"]
        if isinstance(message, tmq.ProjectionData):
            assert message.pixels.shape == (2, 64)
            assert 0 <= message.theta < 2 * math.pi
            assert message.center == 32.0


def test_our_replies_have_the_bytes_of_upstreams_distributor(shared_data: Path) -> None:
    session = [(e, known) for e, known in recorded(shared_data) if e["dir"] == "distributor"]
    assert len(session) == 8
    for entry, known in session:
        number, message = tmq.decode(whole(entry, known), columns=64)
        ours = tmq.encode(number, message)
        assert len(ours) == entry["bytes"]
        assert ours[: len(known)] == known


def test_what_the_recording_says_of_the_rows(shared_data: Path) -> None:
    [reply] = [tmq.decode(known)[1] for e, known in recorded(shared_data) if e["type"] == "DATAINFO_REP"]
    assert reply == tmq.InfoReply(total_sinograms=2, first_sinogram=0, sinograms=2, columns=64)


# --- round trips


messages = st.one_of(
    UINT32.filter(bool).flatmap(
        lambda size: st.builds(tmq.InfoRequest, rank=st.integers(0, size - 1), size=st.just(size))
    ),
    st.tuples(*[st.integers(1, 2**30)] * 3, UINT32.filter(bool)).map(
        lambda n: tmq.InfoReply(total_sinograms=sum(n[:3]), first_sinogram=n[0], sinograms=n[1], columns=n[3])
    ),
    st.just(tmq.DataRequest()),
    st.just(tmq.Finish()),
)


@settings(deadline=None)
@given(NUMBERS, messages)
def test_a_round_trip_changes_nothing(number: int, message: tmq.Message) -> None:
    encoded = tmq.encode(number, message)
    assert tmq.decode(encoded) == (number, message)
    assert struct.unpack_from("<Q", encoded, 16)[0] == len(encoded)


@settings(deadline=None)
@given(
    NUMBERS,
    st.integers(-(2**31), 2**31 - 1),
    st.floats(-100, 100),
    st.floats(-1e4, 1e4, width=32),
    hnp.arrays(st.sampled_from(["<f4", ">f4"]), hnp.array_shapes(min_dims=2, max_dims=2, max_side=7)),
    st.booleans(),
)
def test_projections_survive_a_round_trip(number, projection, theta, center, pixels, transposed) -> None:
    pixels = pixels.T if transposed else pixels[::-1]
    sent = tmq.ProjectionData(projection_id=projection, theta=theta, center=center, pixels=pixels)
    encoded = tmq.encode(number, sent)
    assert len(encoded) == 36 + 4 * pixels.size
    got_number, got = tmq.decode(encoded, columns=pixels.shape[1])
    assert (got_number, got.projection_id, got.center) == (number, projection, center)
    assert got.theta == wrap_float32(theta)
    np.testing.assert_array_equal(got.pixels, pixels)


@pytest.mark.parametrize("theta", [-1e-9, -1e-20, 2 * math.pi, np.nextafter(2 * math.pi, 0), -4.0, 1e6])
def test_the_angle_on_the_wire_stays_below_a_full_turn(theta: float) -> None:
    (sent,) = struct.unpack_from("<f", tmq.encode(0, data(theta=theta)), 28)
    assert 0 <= sent < np.float32(2 * math.pi)
    assert math.cos(sent) == pytest.approx(math.cos(theta), abs=1e-6)


def test_decoding_copies_nothing() -> None:
    encoded = tmq.encode(3, data())
    pixels = tmq.decode(encoded, columns=3)[1].pixels
    assert np.shares_memory(pixels, np.frombuffer(encoded, np.uint8))
    assert not tmq.decode(bytes(encoded))[1].pixels.flags.writeable
    assert tmq.decode(encoded)[1].pixels.shape == (1, 6)


def test_lengths_are_upstreams() -> None:
    assert [len(tmq.encode(0, message)) for message in EXAMPLES] == [32, 40, 24, 36 + 24, 24]


def test_padding_is_ignored() -> None:
    for message in (EXAMPLES[0], EXAMPLES[2], EXAMPLES[4]):
        padded = tmq.encode(5, message) + b"\xff" * 8
        struct.pack_into("<Q", padded, 16, len(padded))
        assert tmq.decode(padded) == (5, message)


# --- damage


@pytest.mark.parametrize("message", EXAMPLES)
def test_every_truncation_and_prolongation_is_refused(message: tmq.Message) -> None:
    encoded = tmq.encode(1, message)
    assert all(refused(encoded[:end]) for end in range(len(encoded)))
    assert refused(encoded + b"\x00")
    if len(encoded) > 24:  # the size field tells the truth, but the body is missing
        short = encoded[: len(encoded) - 1]
        struct.pack_into("<Q", short, 16, len(short))
        assert refused(short)


@pytest.mark.parametrize("message", EXAMPLES)
def test_a_changed_byte_ends_in_a_message_or_a_reason(message: tmq.Message) -> None:
    encoded = tmq.encode(1, message)
    for place in range(len(encoded)):
        for flip in range(1, 256):
            broken = bytearray(encoded)
            broken[place] ^= flip
            assert refused(broken, columns=3) or not 16 <= place < 24


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=120))
def test_rubbish_is_refused(rubbish: bytes) -> None:
    assert refused(rubbish)


def header(kind: int, body: bytes = b"") -> bytes:
    return struct.pack("<3Q", 0, kind, 24 + len(body)) + body


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (header(0x03), "type 0x3"),
        (header(2**63), "type 0x8"),
        (header(0x01, struct.pack("<2I", 1, 1)), "worker 1 of 1"),
        (header(0x01, struct.pack("<2I", 0, 0)), "worker 0 of 0"),
        (header(0x02, struct.pack("<4I", 4, 3, 2, 8)), "do not lie within 4 rows"),
        (header(0x02, struct.pack("<4I", 4, 3, 0, 8)), "do not lie within 4 rows"),
        (header(0x02, struct.pack("<4I", 4, 3, 1, 0)), "no columns"),
        (header(0x20, struct.pack("<i3f", 0, math.nan, 1, 1)), "not a finite"),
        (header(0x20, struct.pack("<i3f", 0, 1, math.inf, 1)), "not a finite"),
        (header(0x20, struct.pack("<i2f", 0, 1, 1)), "0 bytes of pixels"),
        (header(0x20, struct.pack("<i2f5s", 0, 1, 1, b"")), "5 bytes of pixels"),
        (header(0x20, struct.pack("<i6f", 0, 1, 1, 1, 1, 1, 1)), "no rows of 3 float32"),
    ],
)
def test_well_formed_nonsense_is_refused_with_its_reason(message: bytes, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        tmq.decode(message, columns=3)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (-1, tmq.Finish()),
        (2**64, tmq.Finish()),
        (0, tmq.InfoRequest(rank=-1, size=2**32)),
        (0, tmq.InfoReply(total_sinograms=2**32, first_sinogram=0, sinograms=1, columns=1)),
        (0, data(projection_id=2**31)),
        (0, data(theta=math.nan)),
        (0, data(center=math.inf)),
        (0, data(center=1e300)),
        (0, data(pixels=np.zeros((2, 3)))),
        (0, data(pixels=np.zeros(3, np.float32))),
        (0, data(pixels=np.zeros((0, 3), np.float32))),
    ],
)
def test_what_has_no_place_in_a_message_is_refused(number: int, message: tmq.Message) -> None:
    with pytest.raises(WireError):
        tmq.encode(number, message)
