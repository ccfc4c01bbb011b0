"""TImage: one ZeroMQ message holds one frame, or one reconstructed volume.

The schema is `timage.fbs`: the seven slots of the APS mini-apps, and appended ones that their readers
ignore. `encode` writes every field, all but the scan's name and the pixels at a place known beforehand.
`decode` reads any layout, and trusts none: a message with appended fields must carry a checksum that holds;
one without any must account for each of its bytes. The end of a scan is a message of its own, `END_OF_SCAN`.
"""

import enum
import itertools
import math
import struct
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from aps_mini_apps.frames import Frame, FrameKind, RowRange, Volume
from aps_mini_apps.geometry import wrap_degrees_float32
from aps_mini_apps.wire import WireError
from aps_mini_apps.wire.flatbuffer import ALIGNMENT, RootTable

END_OF_SCAN: bytes = b"end_data"

MAX_BYTES = 2**31 - 1
"""Length of the longest FlatBuffers message."""


class _Slot(enum.IntEnum):
    SEQ = 0
    DIMS = 1
    ROTATION = 2
    CENTER = 3
    UNIQUE_ID = 4
    ITYPE = 5
    TDATA = 6
    PIXEL_TYPE = 7
    ANGLE = 8
    AXIS = 9
    SCAN = 10
    TIMESTAMP_NS = 11
    ROW_START = 12
    ROW_TOTAL = 13
    NUMBERED = 14
    CHECKSUM = 15


_U8, _I32, _U32, _I64, _F32, _F64, _DIMS = (struct.Struct("<" + c) for c in ("B", "i", "I", "q", "f", "d", "3i"))

_FIELDS = {
    _Slot.SEQ: _I32,
    _Slot.ANGLE: _F64,
    _Slot.AXIS: _F64,
    _Slot.TIMESTAMP_NS: _I64,
    _Slot.DIMS: _DIMS,
    _Slot.ROTATION: _F32,
    _Slot.CENTER: _F32,
    _Slot.UNIQUE_ID: _I32,
    _Slot.TDATA: _U32,
    _Slot.SCAN: _U32,
    _Slot.ROW_START: _U32,
    _Slot.ROW_TOTAL: _U32,
    _Slot.CHECKSUM: _U32,
    _Slot.ITYPE: _U8,
    _Slot.PIXEL_TYPE: _U8,
    _Slot.NUMBERED: _U8,
}
"""The fields in the order in which our table holds them: each is aligned, none needs padding."""

_UPSTREAM_FIELDS = [(int(slot), _FIELDS[slot].size) for slot in _Slot if slot <= _Slot.TDATA]

# Our message: root position, vtable, table (from its way back to the vtable on), scan, pixels.
_TABLE = 4 + 4 + 2 * len(_Slot)
_ENDS = dict(zip(_FIELDS, itertools.accumulate(code.size for code in _FIELDS.values()), strict=True))
_PLACES = {slot: _TABLE + 4 + _ENDS[slot] - _FIELDS[slot].size for slot in _Slot}
_STRINGS = -(-(_TABLE + 4 + max(_ENDS.values())) // 4) * 4
_OFFSETS = (_PLACES[slot] - _TABLE for slot in _Slot)
_PREFIX = struct.pack(f"<I{2 + len(_Slot)}HI", _TABLE, _TABLE - 4, _STRINGS - _TABLE, *_OFFSETS, _TABLE - 4)
_BODY = struct.Struct("<" + "".join(code.format.removeprefix("<") for code in _FIELDS.values()))

_ITYPES = {
    (FrameKind.PROJECTION, False): 1,
    (FrameKind.FLAT, False): 2,
    (FrameKind.DARK, False): 3,
    (FrameKind.FLAT, True): 4,
    (FrameKind.DARK, True): 5,
}
_KINDS = {itype: kind for kind, itype in _ITYPES.items()}
_VOLUME = 0

_PIXEL_TYPES: list[np.dtype[Any]] = [
    np.dtype("<" + c) for c in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8")
]
_CODES = {dtype: code for code, dtype in enumerate(_PIXEL_TYPES, start=1)}
_BY_WIDTH: dict[int, np.dtype[Any]] = {1: np.dtype("u1"), 2: np.dtype("<u2"), 4: np.dtype("<f4"), 8: np.dtype("<f8")}
_FLOAT32 = np.dtype("<f4")


def encode(value: Frame | Volume) -> bytearray:
    """Return the message that holds `value`; the pixels are copied once, straight into it.

    Parameters
    ----------
    value
        A frame of any integer or float dtype in any byte order and any strides, or a float32 volume.

    Raises
    ------
    WireError
        If the format has no room for the value: a dtype, a number or a shape that does not fit.
    """
    try:
        return _encode_frame(value) if isinstance(value, Frame) else _encode_volume(value)
    except (struct.error, OverflowError, UnicodeEncodeError) as error:
        raise WireError(f"a value does not fit into its field: {error}") from error


def decode(
    buffer: bytes | bytearray | memoryview, *, pixel_type: npt.DTypeLike | None = None, strict: bool = False
) -> Frame | Volume:
    """Return what `buffer` holds; its pixels are a view of it, read-only if it is.

    Parameters
    ----------
    buffer
        One whole message, at any alignment. It must not change while the value is in use.
    pixel_type
        What the pixels of a frame are where the message does not say. Without it their width decides:
        uint8, uint16, float32 or float64.
    strict
        Accept only messages with our checksum.

    Raises
    ------
    WireError
        If the message is truncated, corrupt, or not TImage.
    """
    view = memoryview(buffer).cast("B")
    table = RootTable(view)
    _check_whole(view, table, strict=strict)
    dims = table.read(_Slot.DIMS, _DIMS) or (0, 0, 0)
    if min(dims) < 1:
        raise WireError(f"an image of {dims[0]} x {dims[1]} x {dims[2]} pixels")
    itype = table.number(_Slot.ITYPE, _U8)
    if itype == _VOLUME:
        return _decode_volume(view, table, dims)
    if itype not in _KINDS:
        raise WireError(f"no kind of frame has the number {itype}")
    return _decode_frame(view, table, dims, itype, pixel_type)


def _encode_frame(frame: Frame) -> bytearray:
    itype = _ITYPES.get((frame.kind, frame.resets))
    if itype is None:
        raise WireError("only flats and darks start their set anew, projections do not")
    pixels = frame.pixels
    return _assemble(
        pixels[np.newaxis],
        itype=itype,
        seq=frame.sequence,
        number=frame.number,
        angle=frame.angle,
        center=frame.center,
        scan=frame.scan,
        timestamp_ns=frame.timestamp_ns,
        rows=_rows_fields(frame.rows, pixels.shape[0]),
        numbered=frame.numbered,
    )


def _encode_volume(volume: Volume) -> bytearray:
    if volume.data.ndim != 3 or volume.data.dtype.newbyteorder("<") != _FLOAT32:
        raise WireError(f"a volume is 3-D float32, not {volume.data.ndim}-D {volume.data.dtype}")
    return _assemble(
        volume.data,
        itype=_VOLUME,
        seq=volume.window,
        number=volume.window,
        angle=0.0,
        center=volume.center,
        scan=volume.scan,
        timestamp_ns=0,
        rows=_rows_fields(volume.rows, volume.data.shape[0]),
        numbered=True,
    )


def _rows_fields(rows: RowRange | None, count: int) -> tuple[int, int]:
    if rows is None:
        return 0, 0
    if rows.count != count:
        raise WireError(f"{count} rows of pixels are said to be rows {rows.start} to {rows.stop}")
    return rows.start, rows.total


def _assemble(
    pixels: npt.NDArray[np.generic],
    *,
    itype: int,
    seq: int,
    number: int,
    angle: float,
    center: float | None,
    scan: str,
    timestamp_ns: int,
    rows: tuple[int, int],
    numbered: bool,
) -> bytearray:
    dtype = pixels.dtype.newbyteorder("<")
    if dtype not in _CODES or not pixels.size:
        raise WireError(f"pixels of dtype {pixels.dtype} and shape {pixels.shape} have no place in a message")
    if not math.isfinite(angle) or not math.isfinite(center or 0.0):
        raise WireError(f"the angle {angle} or the centre {center} is not a finite number")
    name = scan.encode()
    named = _STRINGS + 4 + len(name) + 1
    begin = -(-(named + 4) // ALIGNMENT) * ALIGNMENT
    if begin + pixels.nbytes > MAX_BYTES:
        raise WireError(f"{pixels.nbytes} bytes of pixels are more than the {MAX_BYTES} of a message")

    buffer = bytearray(begin + pixels.nbytes)
    buffer[: len(_PREFIX)] = _PREFIX
    _BODY.pack_into(
        buffer,
        len(_PREFIX),
        seq,
        angle,
        math.nan if center is None else center,
        timestamp_ns,
        *pixels.shape,
        wrap_degrees_float32(angle),
        pixels.shape[2] / 2 if center is None else center,
        number,
        begin - 4 - _PLACES[_Slot.TDATA],
        _STRINGS - _PLACES[_Slot.SCAN],
        *rows,
        0,
        itype,
        _CODES[dtype],
        numbered,
    )
    _U32.pack_into(buffer, _STRINGS, len(name))
    buffer[_STRINGS + 4 : named - 1] = name
    _U32.pack_into(buffer, begin - 4, pixels.nbytes)
    np.copyto(np.frombuffer(buffer, dtype, offset=begin).reshape(pixels.shape), pixels)
    place = _PLACES[_Slot.CHECKSUM]
    _U32.pack_into(buffer, place, _crc_around(memoryview(buffer), place))
    return buffer


def _crc_around(view: memoryview, place: int) -> int:
    """CRC-32 of all bytes but the four at `place`."""
    checksum: int = isal_zlib.crc32(view[place + 4 :], isal_zlib.crc32(view[:place]))
    return checksum


def _check_whole(view: memoryview, table: RootTable, *, strict: bool) -> None:
    place = table.position(_Slot.CHECKSUM, _U32.size)
    if place is not None:
        if _crc_around(view, place) != table.number(_Slot.CHECKSUM, _U32):
            raise WireError("the checksum does not hold: the message was changed on its way")
    elif strict:
        raise WireError("the message has no checksum")
    elif table.slots > len(_UPSTREAM_FIELDS):
        raise WireError(f"the message has {table.slots} fields, but no checksum")
    else:
        table.check_cover(_UPSTREAM_FIELDS, (_Slot.TDATA,))


def _decode_frame(
    view: memoryview, table: RootTable, dims: tuple[int, ...], itype: int, pixel_type: npt.DTypeLike | None
) -> Frame:
    if dims[0] != 1:
        raise WireError(f"a frame is one image, not {dims[0]}")
    kind, resets = _KINDS[itype]
    return Frame(
        kind=kind,
        pixels=_decode_pixels(view, table, dims, pixel_type)[0],
        sequence=table.number(_Slot.SEQ, _I32),
        number=table.number(_Slot.UNIQUE_ID, _I32),
        angle=_decode_angle(table),
        center=_decode_center(table),
        resets=resets,
        rows=_decode_rows(table, dims[1]),
        scan=_decode_scan(view, table),
        timestamp_ns=table.number(_Slot.TIMESTAMP_NS, _I64),
        numbered=bool(table.number(_Slot.NUMBERED, _U8)),
    )


def _decode_volume(view: memoryview, table: RootTable, dims: tuple[int, ...]) -> Volume:
    data = _decode_pixels(view, table, dims, _FLOAT32)
    if data.dtype != _FLOAT32:
        raise WireError(f"a volume is float32, not {data.dtype}")
    return Volume(
        data=cast("npt.NDArray[np.float32]", data),
        window=table.number(_Slot.SEQ, _I32),
        center=_decode_center(table),
        scan=_decode_scan(view, table),
        rows=_decode_rows(table, dims[0]),
    )


def _decode_pixels(
    view: memoryview, table: RootTable, dims: tuple[int, ...], pixel_type: npt.DTypeLike | None
) -> npt.NDArray[np.generic]:
    begin, end = table.vector(_Slot.TDATA)
    width, rest = divmod(end - begin, math.prod(dims))
    code = table.number(_Slot.PIXEL_TYPE, _U8)
    if code > len(_PIXEL_TYPES):
        raise WireError(f"no pixel type has the number {code}")
    undeclared: np.dtype[Any] | None = _BY_WIDTH.get(width) if pixel_type is None else np.dtype(pixel_type)
    dtype = _PIXEL_TYPES[code - 1] if code else undeclared
    if rest or dtype is None or dtype.itemsize != width:
        wanted = f"pixels of type {dtype}" if dtype else "pixels of any known type"
        raise WireError(f"{dims[0]} x {dims[1]} x {dims[2]} {wanted} do not take {end - begin} bytes")
    return np.frombuffer(view[begin:end], dtype).reshape(dims)


def _decode_angle(table: RootTable) -> float:
    exact = table.read(_Slot.ANGLE, _F64)
    angle: float = exact[0] if exact else math.radians(table.number(_Slot.ROTATION, _F32))
    if not math.isfinite(angle):
        raise WireError(f"the rotation is not a finite number: {angle}")
    return angle


def _decode_center(table: RootTable) -> float | None:
    exact = table.read(_Slot.AXIS, _F64)
    center: float = exact[0] if exact else table.number(_Slot.CENTER, _F32)
    if math.isnan(center) if exact else center == 0.0:
        return None
    if not math.isfinite(center):
        raise WireError(f"the centre is not a finite number: {center}")
    return center


def _decode_rows(table: RootTable, count: int) -> RowRange | None:
    start, total = table.number(_Slot.ROW_START, _U32), table.number(_Slot.ROW_TOTAL, _U32)
    try:
        return RowRange(start=start, stop=start + count, total=total) if total else None
    except ValueError as error:
        raise WireError(str(error)) from error


def _decode_scan(view: memoryview, table: RootTable) -> str:
    begin, end = table.vector(_Slot.SCAN)
    try:
        return str(view[begin:end], "utf-8")
    except UnicodeDecodeError as error:
        raise WireError(f"the name of the scan is not text: {error}") from error
