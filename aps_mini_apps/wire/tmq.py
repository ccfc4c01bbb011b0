"""TMQ: what a distributor and its reconstruction workers say to each other.

Each message is a header {number, type, size} and a body, packed little-endian. The type alone says what the
body is: workers of the APS mini-apps pad their messages, and the padding is rubbish. `number` counts every
message, requests and replies alike; `size` is the length of the whole message, padding included (both ends of
the APS mini-apps allocate that much and then copy the whole message into it).
"""

import enum
import math
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aps_mini_apps.frames import RowRange
from aps_mini_apps.geometry import wrap_float32
from aps_mini_apps.wire import WireError


@dataclass(frozen=True, slots=True, kw_only=True)
class InfoRequest:
    """Worker `rank` (from 0) of `size` asks which rows are its own."""

    rank: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InfoReply:
    """The worker's slab: `sinograms` rows from `first_sinogram` on, of all `total_sinograms` distributed."""

    total_sinograms: int
    first_sinogram: int
    sinograms: int
    columns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRequest:
    """The worker asks for the next projection."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProjectionData:
    """One projection of the worker's rows.

    Attributes
    ----------
    projection_id
        Number of the projection.
    theta
        Angle, radians; on the wire a float32 in [0, 2 pi).
    center
        Rotation axis, columns.
    pixels
        (sinograms, columns) float32: line integrals.
    """

    projection_id: int
    theta: float
    center: float
    pixels: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """The scan is over; the worker answers with the same and waits for nothing."""


Message = InfoRequest | InfoReply | DataRequest | ProjectionData | Finish


class _Type(enum.IntEnum):
    FINISH = 0x00
    INFO_REQUEST = 0x01
    INFO_REPLY = 0x02
    DATA_REQUEST = 0x10
    DATA_REPLY = 0x20


_HEADER = struct.Struct("<3Q")
_INFO_REQUEST_BODY = struct.Struct("<2I")
_INFO_REPLY_BODY = struct.Struct("<4I")
_DATA_BODY = struct.Struct("<i2f")
_PIXELS = _HEADER.size + _DATA_BODY.size
_FLOAT32 = np.dtype("<f4")


def encode(number: int, message: Message) -> bytearray:
    """Return the message with its header; pixels are copied once, straight into it.

    Raises
    ------
    WireError
        If a number does not fit into its field, or the pixels are not 2-D float32.
    """
    try:
        match message:
            case InfoRequest(rank=rank, size=size):
                return _pack(number, _Type.INFO_REQUEST, _INFO_REQUEST_BODY.pack(rank, size))
            case InfoReply(total_sinograms=total, first_sinogram=first, sinograms=count, columns=columns):
                return _pack(number, _Type.INFO_REPLY, _INFO_REPLY_BODY.pack(total, first, count, columns))
            case DataRequest():
                return _pack(number, _Type.DATA_REQUEST, b"")
            case ProjectionData():
                return _pack_data(number, message)
            case Finish():
                return _pack(number, _Type.FINISH, b"")
    except (struct.error, OverflowError) as error:
        raise WireError(f"a value does not fit into its field: {error}") from error


def decode(buffer: bytes | bytearray | memoryview, *, columns: int | None = None) -> tuple[int, Message]:
    """Return the number of a message and what it says; pixels are a view of `buffer`.

    Parameters
    ----------
    buffer
        One whole message.
    columns
        Length of a row of projection data, as the info reply told it: the pixels get the shape (sinograms,
        columns). Without it they are one row.

    Raises
    ------
    WireError
        If the message is truncated, of unknown type, or contradicts itself.
    """
    view = memoryview(buffer).cast("B")
    number, kind, size = _unpack(_HEADER, view, 0)
    if size != len(view):
        raise WireError(f"the message says that it has {size} bytes, and has {len(view)}")
    match kind:
        case _Type.FINISH:
            return number, Finish()
        case _Type.INFO_REQUEST:
            return number, _decode_info_request(view)
        case _Type.INFO_REPLY:
            return number, _decode_info_reply(view)
        case _Type.DATA_REQUEST:
            return number, DataRequest()
        case _Type.DATA_REPLY:
            return number, _decode_data(view, columns)
        case _:
            raise WireError(f"no message has the type {kind:#x}")


def _pack(number: int, kind: int, body: bytes) -> bytearray:
    return bytearray(_HEADER.pack(number, kind, _HEADER.size + len(body)) + body)


def _pack_data(number: int, data: ProjectionData) -> bytearray:
    pixels = data.pixels
    if pixels.ndim != 2 or pixels.dtype.newbyteorder("<") != _FLOAT32 or not pixels.size:
        raise WireError(f"projection data are 2-D float32, not {pixels.dtype} of shape {pixels.shape}")
    if not math.isfinite(data.theta) or not math.isfinite(data.center):
        raise WireError(f"the angle {data.theta} or the centre {data.center} is not a finite number")
    buffer = bytearray(_PIXELS + pixels.nbytes)
    _HEADER.pack_into(buffer, 0, number, _Type.DATA_REPLY, len(buffer))
    _DATA_BODY.pack_into(buffer, _HEADER.size, data.projection_id, wrap_float32(data.theta), data.center)
    np.copyto(np.frombuffer(buffer, _FLOAT32, offset=_PIXELS).reshape(pixels.shape), pixels)
    return buffer


def _decode_info_request(view: memoryview) -> InfoRequest:
    rank, size = _unpack(_INFO_REQUEST_BODY, view, _HEADER.size)
    if rank >= size:
        raise WireError(f"worker {rank} of {size}, counted from 0, does not exist")
    return InfoRequest(rank=rank, size=size)


def _decode_info_reply(view: memoryview) -> InfoReply:
    total, first, count, columns = _unpack(_INFO_REPLY_BODY, view, _HEADER.size)
    try:
        RowRange(start=first, stop=first + count, total=total)
    except ValueError as error:
        raise WireError(str(error)) from error
    if not columns:
        raise WireError("rows of no columns")
    return InfoReply(total_sinograms=total, first_sinogram=first, sinograms=count, columns=columns)


def _decode_data(view: memoryview, columns: int | None) -> ProjectionData:
    projection, theta, center = _unpack(_DATA_BODY, view, _HEADER.size)
    if not math.isfinite(theta) or not math.isfinite(center):
        raise WireError(f"the angle {theta} or the centre {center} is not a finite number")
    count, rest = divmod(len(view) - _PIXELS, _FLOAT32.itemsize)
    if rest or not count or count % (columns or 1):
        raise WireError(f"{len(view) - _PIXELS} bytes of pixels are no rows of {columns or 'some'} float32")
    pixels = np.frombuffer(view[_PIXELS:], _FLOAT32).reshape(-1, columns or count)
    return ProjectionData(projection_id=projection, theta=theta, center=center, pixels=pixels)


def _unpack(code: struct.Struct, view: memoryview, position: int) -> tuple[int, ...]:
    if position + code.size > len(view):
        raise WireError(f"the message ends after {len(view)} bytes, inside its fixed part")
    return code.unpack_from(view, position)
