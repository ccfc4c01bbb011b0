"""TImage: what upstream wrote is read right, what we write upstream can read, what is broken is refused."""

import dataclasses
import hashlib
import json
import math
import re
from pathlib import Path

import flatbuffers
import numpy as np
import pytest
from flatbuffers import number_types
from flatbuffers.table import Table
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from isal import isal_zlib

from aps_mini_apps.frames import Frame, FrameKind, RowRange, Volume
from aps_mini_apps.geometry import wrap_degrees_float32
from aps_mini_apps.wire import WireError, timage

DTYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"]
INT32 = st.integers(-(2**31), 2**31 - 1)
SCHEMA = Path(timage.__file__).with_name("timage.fbs").read_text()


def assert_same(a: Frame | Volume, b: Frame | Volume) -> None:
    """Every field equal; pixels equal byte for byte (NaNs too), whatever the byte order in memory."""
    assert type(a) is type(b)
    for field in dataclasses.fields(a):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if isinstance(left, np.ndarray):
            assert left.dtype.newbyteorder("=") == right.dtype.newbyteorder("=")
            assert left.shape == right.shape
            assert left.astype(left.dtype.newbyteorder("<")).tobytes() == right.tobytes()
        else:
            assert left == right, field.name


def is_same(a: Frame | Volume, b: Frame | Volume) -> bool:
    try:
        assert_same(a, b)
    except AssertionError:
        return False
    return True


def decode_or_refuse(data: bytes | bytearray, *, strict: bool = False) -> Frame | Volume | None:
    """None if refused; any exception but WireError fails the test."""
    try:
        return timage.decode(bytes(data), strict=strict)
    except WireError:
        return None


def small_frame() -> Frame:
    return Frame(
        kind=FrameKind.FLAT,
        pixels=np.arange(1, 7, dtype=np.uint16).reshape(2, 3),
        sequence=258,
        number=77,
        angle=-1.25,
        center=1.125,
        resets=True,
        rows=RowRange(start=4, stop=6, total=9),
        scan="tooth 1",
        timestamp_ns=1_700_000_000_123_456_789,
    )


# --- round trips


@st.composite
def arrays(draw, dims: int, dtypes: list[str]) -> np.ndarray:
    """Pixels in any byte order, and strides that are reversed, stretched or transposed."""
    dtype = np.dtype(draw(st.sampled_from(dtypes))).newbyteorder(draw(st.sampled_from("<>")))
    shape = draw(hnp.array_shapes(min_dims=dims, max_dims=dims, max_side=9))
    raw = np.frombuffer(draw(st.binary(min_size=64, max_size=64)), np.uint8)
    flat = np.resize(raw, math.prod(shape) * dtype.itemsize)
    whole = flat.view(dtype).reshape(shape)
    steps = draw(st.tuples(*[st.sampled_from([1, -1, 2])] * dims))
    whole = whole[tuple(slice(None, None, step) for step in steps)]
    return whole.T if draw(st.booleans()) else whole


@st.composite
def row_ranges(draw, count: int) -> RowRange | None:
    start, after = draw(st.integers(0, 2**31)), draw(st.integers(0, 2**30))
    return draw(st.sampled_from([None, RowRange(start=start, stop=start + count, total=start + count + after)]))


centers = st.none() | st.floats(-1e6, 1e6)
scans = st.text(max_size=20).filter(lambda text: text.isascii() or text.isprintable())


@st.composite
def frames(draw) -> Frame:
    pixels = draw(arrays(2, DTYPES))
    kind = draw(st.sampled_from(FrameKind))
    return Frame(
        kind=kind,
        pixels=pixels,
        sequence=draw(INT32),
        number=draw(INT32),
        angle=draw(st.floats(-1e6, 1e6)),
        center=draw(centers),
        resets=kind is not FrameKind.PROJECTION and draw(st.booleans()),
        rows=draw(row_ranges(pixels.shape[0])),
        scan=draw(scans),
        timestamp_ns=draw(st.integers(-(2**63), 2**63 - 1)),
        numbered=draw(st.booleans()),
    )


@st.composite
def volumes(draw) -> Volume:
    data = draw(arrays(3, ["f4"]))
    rows = draw(row_ranges(data.shape[0]))
    return Volume(data=data, window=draw(INT32), center=draw(centers), scan=draw(scans), rows=rows)


@settings(deadline=None)
@given(frames() | volumes(), st.booleans())
def test_a_round_trip_changes_nothing(value: Frame | Volume, strict: bool) -> None:
    assert_same(value, timage.decode(timage.encode(value), strict=strict))


@settings(deadline=None)
@given(frames(), st.integers(1, 8))
def test_a_message_is_read_at_any_alignment(frame: Frame, shift: int) -> None:
    message = timage.encode(frame)
    memory = bytearray(shift) + message
    assert_same(frame, timage.decode(memoryview(memory)[shift:], strict=True))


def test_angles_are_exact_and_not_wrapped() -> None:
    for angle in (math.pi / 3, 7.0, -0.1, 1e-12):
        frame = dataclasses.replace(small_frame(), angle=angle)
        assert timage.decode(timage.encode(frame)).angle == angle


def test_an_unknown_centre_is_told_from_the_middle() -> None:
    unknown, middle = (dataclasses.replace(small_frame(), center=c) for c in (None, 1.5))
    assert timage.decode(timage.encode(unknown)).center is None
    assert timage.decode(timage.encode(middle)).center == 1.5
    assert Reader(timage.encode(unknown)).number(3, number_types.Float32Flags) == 1.5


def test_decoding_copies_nothing() -> None:
    message = timage.encode(small_frame())
    frame = timage.decode(message)
    assert np.shares_memory(frame.pixels, np.frombuffer(message, np.uint8))
    message[-2:] = b"\x00\x01"
    assert frame.pixels[-1, -1] == 256
    assert frame.pixels.flags.writeable
    assert not timage.decode(bytes(timage.encode(small_frame()))).pixels.flags.writeable


def test_encoding_copies_pixels_once(monkeypatch: pytest.MonkeyPatch) -> None:
    copies = []
    copyto = np.copyto
    monkeypatch.setattr(np, "copyto", lambda target, source: copies.append((target, source)) or copyto(target, source))
    pixels = np.arange(24, dtype=">u2").reshape(4, 6)[::2, ::-1]
    message = timage.encode(Frame(kind=FrameKind.DARK, pixels=pixels))
    [(target, source)] = copies
    assert np.shares_memory(target, np.frombuffer(message, np.uint8))
    assert np.shares_memory(source, pixels)


def test_pixels_lie_where_a_processor_likes_them() -> None:
    for scan in ("", "a", "abcdefg"):
        frame = timage.decode(timage.encode(dataclasses.replace(small_frame(), scan=scan)))
        assert frame.pixels.ctypes.data % 8 == 0


# --- what cannot be sent


@pytest.mark.parametrize(
    "change",
    [
        {"pixels": np.zeros((2, 3), bool)},
        {"pixels": np.zeros((2, 3), complex)},
        {"pixels": np.zeros((2, 3), object)},
        {"pixels": np.zeros((2, 0), np.uint8)},
        {"pixels": np.zeros((3, 3), np.uint8)},
        {"kind": FrameKind.PROJECTION},
        {"sequence": 2**31},
        {"number": -(2**31) - 1},
        {"angle": math.inf},
        {"center": math.nan},
        {"timestamp_ns": 2**63},
        {"scan": "\ud800"},
        {"rows": RowRange(start=2**32 - 3, stop=2**32 - 1, total=2**32)},
        {"pixels": np.lib.stride_tricks.as_strided(np.zeros(1), (2, 2**29), (0, 0))},
    ],
)
def test_what_has_no_place_in_a_message_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(WireError):
        timage.encode(dataclasses.replace(small_frame(), **change))


@pytest.mark.parametrize("data", [np.zeros((2, 3), np.float32), np.zeros((1, 2, 3))])
def test_a_volume_is_3d_float32(data: np.ndarray) -> None:
    with pytest.raises(WireError, match="3-D float32"):
        timage.encode(Volume(data=data))


# --- upstream's own messages


def golden(folder: Path) -> list[tuple[dict, bytes]]:
    folder = folder / "golden" / "timage"
    return [(entry, (folder / entry["file"]).read_bytes()) for entry in json.loads((folder / "index.json").read_text())]


def test_upstreams_messages_are_read_right(shared_data: Path) -> None:
    kinds = {1: (FrameKind.PROJECTION, False), 2: (FrameKind.FLAT, False), 3: (FrameKind.DARK, False)}
    kinds |= {4: (FrameKind.FLAT, True), 5: (FrameKind.DARK, True)}
    messages = golden(shared_data)
    assert len(messages) == 8
    for entry, message in messages:
        for pixel_type in (None, entry["dtype"]):
            frame = timage.decode(message, pixel_type=pixel_type)
            assert (frame.kind, frame.resets) == kinds[entry["itype"]]
            assert (frame.sequence, frame.number) == (entry["seq"], entry["uniqueId"])
            assert frame.angle == math.radians(entry["rotation"])
            assert frame.center == entry["center"]
            assert (1, *frame.pixels.shape) == tuple(entry["dims"])
            assert frame.pixels.dtype == entry["dtype"]
            assert hashlib.sha256(frame.pixels.tobytes()).hexdigest() == entry["sha256"]
            assert (frame.numbered, frame.scan, frame.rows, frame.timestamp_ns) == (False, "", None, 0)


def test_upstreams_messages_are_refused_where_a_checksum_is_due(shared_data: Path) -> None:
    for _, message in golden(shared_data):
        with pytest.raises(WireError, match="no checksum"):
            timage.decode(message, strict=True)


def test_a_pixel_type_of_the_wrong_width_is_refused(shared_data: Path) -> None:
    message = golden(shared_data)[0][1]
    with pytest.raises(WireError, match="do not take 56 bytes"):
        timage.decode(message, pixel_type=np.uint16)
    assert timage.decode(message, pixel_type=np.int32).pixels.dtype == np.int32


def value_bytes(message: bytes) -> set[int]:
    """Where upstream's buffer holds mere values, whose corruption nobody can see."""
    table = Reader(message).table
    sizes = {0: 4, 1: 12, 2: 4, 3: 4, 4: 4, 5: 1}
    places = {slot: table.Pos + table.Offset(4 + 2 * slot) for slot in sizes if table.Offset(4 + 2 * slot)}
    found = {place + i for slot, place in places.items() for i in range(sizes[slot])}
    begin = table.Vector(table.Offset(16))
    return found | set(range(begin, begin + table.VectorLen(table.Offset(16))))


def test_a_corrupt_message_of_upstream_is_refused_or_means_the_same(shared_data: Path) -> None:
    for entry, message in golden(shared_data):
        if entry["file"] == "projection_wide.bin":  # the same layout as the others, only longer
            continue
        original = timage.decode(message)
        values = value_bytes(message)
        for place in range(len(message)):
            for flip in (1, 2, 4, 8, 16, 32, 64, 128, 255, message[place] or 1):
                data = bytearray(message)
                data[place] ^= flip
                read = decode_or_refuse(data)
                assert read is None or place in values or is_same(read, original), (
                    entry["file"],
                    place,
                    flip,
                )


def test_a_truncated_or_prolonged_message_of_upstream_is_refused(shared_data: Path) -> None:
    for _, message in golden(shared_data):
        assert all(decode_or_refuse(message[:end]) is None for end in range(len(message)))
        for rubbish in (b"\x01", b"end_data", bytes(8), message):
            assert decode_or_refuse(message + rubbish) is None


@settings(deadline=None)
@given(st.data())
def test_random_damage_to_upstreams_messages_ends_in_a_value_or_a_reason(shared_data: Path, data) -> None:
    message = bytearray(data.draw(st.sampled_from(golden(shared_data)))[1])
    for _ in range(data.draw(st.integers(1, 8))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    decode_or_refuse(message)


# --- damage to ours


@pytest.mark.parametrize("strict", [True, False])
def test_every_truncation_is_refused(strict: bool) -> None:
    message = timage.encode(small_frame())
    assert all(decode_or_refuse(message[:end], strict=strict) is None for end in range(len(message)))
    assert decode_or_refuse(message + b"\x00", strict=strict) is None


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("scan", ["", "tooth 1"])
def test_every_changed_byte_is_refused(strict: bool, scan: str) -> None:
    message = timage.encode(dataclasses.replace(small_frame(), scan=scan))
    for place in range(len(message)):
        for flip in range(1, 256):
            data = bytearray(message)
            data[place] ^= flip
            assert decode_or_refuse(data, strict=strict) is None, (place, flip)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=12))
def test_random_damage_is_refused(damage: list[tuple[int, int]]) -> None:
    message = timage.encode(small_frame())
    data = bytearray(message)
    for place, byte in damage:
        data[place % len(data)] = byte
    assume(data != message)
    assert decode_or_refuse(data, strict=True) is None


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=400))
def test_rubbish_is_refused(data: bytes) -> None:
    assert decode_or_refuse(data) is None


def test_the_end_of_a_scan_and_nothing_are_no_frames() -> None:
    assert decode_or_refuse(timage.END_OF_SCAN) is None
    assert decode_or_refuse(b"") is None


def test_a_frame_hidden_in_the_pixels_of_another_does_not_come_out() -> None:
    for inner in (build(seq=1, dims=(1, 1, 4), itype=1, tdata=b"abcd"), bytes(timage.encode(small_frame()))):
        pixels = np.frombuffer(bytes(-len(inner) % 4) + inner, np.uint8)[np.newaxis]
        message = timage.encode(Frame(kind=FrameKind.PROJECTION, pixels=pixels))
        start = len(message) - len(inner)
        message[:4] = (start + int.from_bytes(inner[:4], "little")).to_bytes(4, "little")
        assert decode_or_refuse(message) is None


# --- agreement with the flatbuffers package


class Reader:
    """The root table as the flatbuffers package sees it, slot by slot."""

    def __init__(self, message: bytes | bytearray) -> None:
        self.table = Table(message, flatbuffers.encode.Get(flatbuffers.packer.uoffset, message, 0))

    def number(self, slot: int, flags: type, *, inside: int = 0) -> float:
        offset = self.table.Offset(4 + 2 * slot)
        return self.table.Get(flags, self.table.Pos + offset + inside) if offset else 0

    def vector(self, slot: int) -> bytes:
        offset = self.table.Offset(4 + 2 * slot)
        return self.table.GetVectorAsNumpy(number_types.Uint8Flags, offset).tobytes()

    def string(self, slot: int) -> bytes:
        return self.table.String(self.table.Pos + self.table.Offset(4 + 2 * slot))


@settings(deadline=None)
@given(frames())
def test_flatbuffers_reads_what_we_write(frame: Frame) -> None:
    n = number_types
    message = timage.encode(frame)
    reader = Reader(message)
    rows, columns = frame.pixels.shape
    assert reader.number(0, n.Int32Flags) == frame.sequence
    assert [reader.number(1, n.Int32Flags, inside=4 * i) for i in range(3)] == [1, rows, columns]
    assert reader.number(2, n.Float32Flags) == wrap_degrees_float32(frame.angle)
    assert reader.number(3, n.Float32Flags) == np.float32(columns / 2 if frame.center is None else frame.center)
    assert reader.number(4, n.Int32Flags) == frame.number
    assert reader.number(5, n.Int8Flags) == frame.kind + (2 if frame.resets else 0)
    assert reader.vector(6) == frame.pixels.astype(frame.pixels.dtype.newbyteorder("<")).tobytes()
    assert DTYPES[reader.number(7, n.Uint8Flags) - 1] == frame.pixels.dtype.newbyteorder("<").str[1:]
    assert reader.number(8, n.Float64Flags) == frame.angle
    axis = reader.number(9, n.Float64Flags)
    assert math.isnan(axis) if frame.center is None else axis == frame.center
    assert reader.string(10).decode() == frame.scan
    assert reader.number(11, n.Int64Flags) == frame.timestamp_ns
    assert reader.number(12, n.Uint32Flags) == (frame.rows.start if frame.rows else 0)
    assert reader.number(13, n.Uint32Flags) == (frame.rows.total if frame.rows else 0)
    assert reader.number(14, n.BoolFlags) == frame.numbered
    place = checksum_place(message)
    assert reader.number(15, n.Uint32Flags) == isal_zlib.crc32(bytes(message[:place] + message[place + 4 :]))


def test_every_scalar_is_aligned_to_its_size() -> None:
    table = Reader(timage.encode(small_frame())).table
    sizes = [4, 4, 4, 4, 4, 1, 4, 1, 8, 8, 4, 8, 4, 4, 1, 4]
    assert all((table.Pos + table.Offset(4 + 2 * slot)) % size == 0 for slot, size in enumerate(sizes))


PREPEND = {
    "byte": "PrependInt8Slot",
    "ubyte": "PrependUint8Slot",
    "bool": "PrependBoolSlot",
    "int": "PrependInt32Slot",
    "uint": "PrependUint32Slot",
    "long": "PrependInt64Slot",
    "float": "PrependFloat32Slot",
    "double": "PrependFloat64Slot",
}


def schema_fields() -> dict[str, str]:
    """Name to type, in the order of the slots."""
    [body] = re.findall(r"table TImage \{(.*?)\}", SCHEMA, re.DOTALL)
    enums = dict(re.findall(r"enum (\w+) : (\w+)", SCHEMA))
    return {name: enums.get(kind, kind) for name, kind in re.findall(r"(\w+): ([\w\[\]]+);", body)}


def checksum_place(message: bytes | bytearray) -> int:
    table = Reader(message).table
    return table.Pos + table.Offset(4 + 2 * 15)


def sign(message: bytearray, place: int | None = None) -> None:
    """Make the checksum (at `place`, where the message itself would no longer tell) hold."""
    place = checksum_place(message) if place is None else place
    message[place : place + 4] = isal_zlib.crc32(message[place + 4 :], isal_zlib.crc32(message[:place])).to_bytes(
        4, "little"
    )


def build(*, order: int = 1, slots: int = 7, force: bool = False, **values: object) -> bytes:
    """Build a message with the flatbuffers package by `timage.fbs`, with the fields in either order."""
    builder = flatbuffers.Builder(16)
    builder.ForceDefaults(force)
    made = {}
    if "tdata" in values:
        made["tdata"] = builder.CreateByteVector(values["tdata"])
    if "scan" in values:
        made["scan"] = builder.CreateString(values["scan"])
    builder.StartObject(slots)
    fields = [(slot, name, kind) for slot, (name, kind) in enumerate(schema_fields().items())]
    for slot, name, kind in fields[::order]:
        if name not in values:
            continue
        if name == "dims":
            builder.Prep(4, 12)
            for side in reversed(values["dims"]):
                builder.PrependInt32(side)
            builder.PrependStructSlot(slot, builder.Offset(), 0)
        elif name in made:
            builder.PrependUOffsetTRelativeSlot(slot, made[name], 0)
        else:
            getattr(builder, PREPEND[kind])(slot, values[name], 0)
    builder.Finish(builder.EndObject())
    message = builder.Output()
    if "checksum" in values:
        sign(message)
    return bytes(message)


@settings(deadline=None)
@given(
    seq=INT32,
    number=INT32,
    itype=st.integers(1, 5),
    rotation=st.floats(-720, 720, width=32),
    center=st.floats(0, 1000, width=32),
    rows=st.integers(1, 5),
    columns=st.integers(1, 5),
    dtype=st.sampled_from(["uint8", "uint16", "float32", "float64"]),
    order=st.sampled_from([1, -1]),
    force=st.booleans(),
)
def test_what_flatbuffers_writes_is_read(
    seq, number, itype, rotation, center, rows, columns, dtype, order, force
) -> None:
    pixels = np.arange(rows * columns, dtype=dtype).reshape(rows, columns)
    fields = {
        "seq": seq,
        "dims": (1, rows, columns),
        "rotation": rotation,
        "center": center,
        "uniqueId": number,
    }
    message = build(**fields, itype=itype, tdata=pixels.tobytes(), order=order, force=force)
    expected = Frame(
        kind=FrameKind(itype if itype <= 3 else itype - 2),
        resets=itype > 3,
        pixels=pixels,
        sequence=seq,
        number=number,
        angle=math.radians(rotation),
        center=center or None,
        numbered=False,
    )
    assert_same(expected, timage.decode(message))


def test_absent_fields_are_zero() -> None:
    frame = timage.decode(build(dims=(1, 1, 2), itype=2, tdata=b"ab"))
    assert (frame.sequence, frame.number, frame.angle, frame.center) == (0, 0, 0.0, None)


def test_upstreams_volume_is_read_and_ends_nothing() -> None:
    data = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    volume = timage.decode(build(seq=5, dims=data.shape, center=1.0, tdata=data.tobytes()), pixel_type=np.uint16)
    assert_same(volume, Volume(data=data, window=5, center=1.0))


@pytest.mark.parametrize("order", [1, -1])
def test_appended_fields_are_read_in_any_layout(order: int) -> None:
    frame = small_frame()
    fields = {"seq": 258, "dims": (1, 2, 3), "rotation": 0.0, "uniqueId": 77, "itype": 4, "pixel_type": 3}
    fields |= {"angle": -1.25, "axis": 1.125, "scan": "tooth 1", "timestamp_ns": frame.timestamp_ns}
    fields |= {
        "row_start": 4,
        "row_total": 9,
        "numbered": True,
        "tdata": frame.pixels.tobytes(),
        "checksum": 1,
    }
    assert_same(frame, timage.decode(build(**fields, slots=16, order=order), strict=True))
    later = build(**fields, slots=20, order=order, force=True)
    assert_same(frame, timage.decode(later, strict=True))
    del fields["checksum"]
    with pytest.raises(WireError, match="no checksum"):
        timage.decode(build(**fields, slots=16, order=order))


FRAME = {"dims": (1, 1, 4), "itype": 1, "tdata": b"abcd"}
SIGNED = {"checksum": 1, "slots": 16}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (FRAME | {"dims": (1, -1, -4)}, "image of 1 x -1 x -4"),
        (FRAME | {"dims": (0, 0, 0)}, "image of 0 x 0 x 0"),
        ({"itype": 1, "tdata": b"abcd"}, "image of 0 x 0 x 0"),
        (FRAME | {"dims": (2, 1, 2)}, "one image, not 2"),
        (FRAME | {"dims": (1, 1, 3)}, "do not take 4 bytes"),
        (FRAME | {"dims": (1, 2**31 - 1, 2**31 - 1)}, "do not take 4 bytes"),
        (FRAME | {"tdata": b"abcdefghijkl"}, "do not take 12 bytes"),
        (FRAME | {"tdata": b""}, "do not take 0 bytes"),
        ({"dims": (1, 1, 4), "itype": 1}, "do not take 0 bytes"),
        (FRAME | {"itype": 6}, "number 6"),
        (FRAME | {"itype": -1}, "number 255"),
        (FRAME | {"itype": 0}, "4 pixels of type float32"),
        (FRAME | {"rotation": math.nan}, "rotation is not a finite"),
        (FRAME | {"center": math.inf}, "centre is not a finite"),
        (FRAME | {"center": math.nan}, "centre is not a finite"),
        (FRAME | SIGNED | {"angle": math.inf}, "rotation is not a finite"),
        (FRAME | SIGNED | {"axis": -math.inf}, "centre is not a finite"),
        (FRAME | SIGNED | {"pixel_type": 12}, "pixel type has the number 12"),
        (FRAME | SIGNED | {"pixel_type": 3}, "do not take 4 bytes"),
        (FRAME | SIGNED | {"row_start": 3, "row_total": 3}, "do not lie within 3 rows"),
        ({"dims": (1, 1, 1), "tdata": b"abcd", "pixel_type": 6} | SIGNED, "float32, not int32"),
    ],
)
def test_well_formed_nonsense_is_refused_with_its_reason(fields: dict[str, object], reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        timage.decode(build(**fields))


def test_a_liar_that_signs_its_message_gets_a_reason_or_a_frame() -> None:
    message = timage.encode(small_frame())
    place = checksum_place(message)
    for position in range(len(message)):
        for byte in (0, 1, 3, 4, 127, 128, 250, 255):
            data = bytearray(message)
            data[position] = byte
            sign(data, place)
            decode_or_refuse(data)


def test_a_vector_that_claims_more_than_the_message_is_refused() -> None:
    message = timage.encode(small_frame())
    for begin in (message.index(b"tooth 1"), len(message) - 12):
        for claim in (255, 2**32 - 1):
            data = bytearray(message)
            data[begin - 4 : begin] = claim.to_bytes(4, "little")
            sign(data)
            with pytest.raises(WireError, match=f"claims {claim} bytes"):
                timage.decode(data)


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ((99,), "root table lies at byte 99 of a message of 4"),
        ((8, 4 | 4 << 16, 9), "vtable lies at byte -1"),
        ((8, 4 | 4 << 16, -99), "vtable lies at byte 107"),
        ((8, 3 | 4 << 16, 4), "vtable of 3 bytes"),
        ((8, 5 | 4 << 16, 4), "vtable of 5 bytes"),
        ((8, 90 | 4 << 16, 4), "vtable of 90 bytes"),
        ((8, 4 | 3 << 16, 4), "table of 3 bytes"),
        ((8, 4 | 9 << 16, 4), "table of 9 bytes"),
        ((12, 6 | 4 << 16, 4, 8), "slot 0 lies outside its table"),
        ((12, 6 | 4 << 16, 3, 8), "slot 0 lies outside its table"),
    ],
)
def test_what_holds_a_message_together_is_checked(numbers: tuple[int, ...], reason: str) -> None:
    message = b"".join(number.to_bytes(4, "little", signed=True) for number in numbers)
    with pytest.raises(WireError, match=reason):
        timage.decode(message)


def test_a_scan_name_that_is_no_text_is_refused() -> None:
    message = bytearray(build(**FRAME, **SIGNED, scan="scan"))
    message[message.index(b"scan")] = 0xFF
    sign(message)
    with pytest.raises(WireError, match="not text"):
        timage.decode(message)


def test_the_schema_names_the_pixel_types_by_their_codes() -> None:
    [names] = re.findall(r"enum PixelType : ubyte \{(.*?)\}", SCHEMA)
    names = re.findall(r"\w+", names.replace("= 0", ""))
    for code, name in enumerate(names[1:], start=1):
        message = timage.encode(Frame(kind=FrameKind.DARK, pixels=np.zeros((1, 1), name.lower())))
        assert Reader(message).number(7, number_types.Uint8Flags) == code
    assert len(names) == len(DTYPES) + 1
