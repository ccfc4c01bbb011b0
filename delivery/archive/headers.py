"""The records of a zip archive, as PKWARE's APPNOTE 6.3.10 has them; its sections are given beside each.

Sizes are known before a record is written, so there are no data descriptors. A field of 32 bits that can't hold its
value is filled with ones, and ZIP64's extra field (4.5.3) holds it; of 16 bits, ZIP64's end record (4.3.14). Times are
UTC: Info-ZIP's extra field holds them to the second, and who reads DOS's field alone has them to two.
"""

import struct
import time
from typing import NamedTuple

STORED, DEFLATED = 0, 8

_FULL_16, _FULL_32 = 0xFFFF, 0xFFFFFFFF
_UTF8 = 1 << 11
_PLAIN, _ZIP64 = 20, 45  # version needed to extract (4.4.3)
_MADE_BY = 3 << 8 | _ZIP64  # Unix (4.4.2)
_REGULAR = 0o100644 << 16  # a regular file that all may read (4.4.15)

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END_64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR_64 = struct.Struct("<4sIQI")
_TIMESTAMP = struct.Struct("<2HBi")
_SIZES_64 = struct.Struct("<2H2Q")
_EXTRA_64 = struct.Struct("<2H")

_EARLIEST, _LATEST = 315532800, (1 << 31) - 1  # 1980, where DOS's times begin; 2038, where those of 32 bits end


class Member(NamedTuple):
    """What an archive's records say of one of its files.

    Parameters
    ----------
    name
        Path in the archive, in UTF-8.
    method
        `STORED` or `DEFLATED`.
    crc32, size
        Of the file's bytes.
    packed
        Number of bytes that the archive holds for them.
    mtime_ns
        Time of modification, in nanoseconds since 1970.
    """

    name: bytes
    method: int
    crc32: int
    packed: int
    size: int
    mtime_ns: int


def local_record(member: Member) -> bytes:
    """Return what stands before a member's data (4.3.7)."""
    extra = _timestamp(member)
    version, packed, size = _PLAIN, member.packed, member.size
    if max(packed, size) >= _FULL_32:  # both must be in the extra field, in this order
        extra += _SIZES_64.pack(1, 16, size, packed)
        version, packed, size = _ZIP64, _FULL_32, _FULL_32
    numbers = member.crc32, packed, size, len(member.name), len(extra)
    return _LOCAL.pack(b"PK\3\4", version, _UTF8, member.method, *_dos_time(member), *numbers) + member.name + extra


def local_length(member: Member) -> int:
    """Return the length of `local_record`, without making it."""
    large = max(member.packed, member.size) >= _FULL_32
    return _LOCAL.size + len(member.name) + _TIMESTAMP.size + _SIZES_64.size * large


def central_record(member: Member, offset: int) -> bytes:
    """Return a member's record in the central directory (4.3.12); `offset` is where its local record begins."""
    fields = member.size, member.packed, offset  # the order of the extra field
    large = [field for field in fields if field >= _FULL_32]
    size, packed, offset = (min(field, _FULL_32) for field in fields)
    extra = _timestamp(member)
    if large:
        extra += _EXTRA_64.pack(1, 8 * len(large)) + struct.pack(f"<{len(large)}Q", *large)
    version = _ZIP64 if large else _PLAIN
    numbers = member.crc32, packed, size, len(member.name), len(extra)
    rest = 0, 0, 0, _REGULAR, offset  # no comment, on this disk, not known to be text
    fixed = _CENTRAL.pack(b"PK\1\2", _MADE_BY, version, _UTF8, member.method, *_dos_time(member), *numbers, *rest)
    return fixed + member.name + extra


def central_length(member: Member, offset: int) -> int:
    """Return the length of `central_record`, without making it."""
    large = (member.size >= _FULL_32) + (member.packed >= _FULL_32) + (offset >= _FULL_32)
    extra = _EXTRA_64.size + 8 * large if large else 0
    return _CENTRAL.size + len(member.name) + _TIMESTAMP.size + extra


def end_records(count: int, length: int, offset: int) -> bytes:
    """Return what ends an archive (4.3.14 to 4.3.16).

    Parameters
    ----------
    count
        Number of members.
    length, offset
        Bytes of the central directory, and where it begins.
    """
    end = _END.pack(b"PK\5\6", 0, 0, *[min(count, _FULL_16)] * 2, min(length, _FULL_32), min(offset, _FULL_32), 0)
    if count < _FULL_16 and length < _FULL_32 and offset < _FULL_32:
        return end
    end_64 = _END_64.pack(b"PK\6\6", _END_64.size - 12, _MADE_BY, _ZIP64, 0, 0, count, count, length, offset)
    return end_64 + _LOCATOR_64.pack(b"PK\6\7", 0, offset + length, 1) + end


def _seconds(member: Member) -> int:
    return min(max(member.mtime_ns // 1_000_000_000, _EARLIEST), _LATEST)


def _timestamp(member: Member) -> bytes:
    return _TIMESTAMP.pack(0x5455, 5, 1, _seconds(member))


def _dos_time(member: Member) -> tuple[int, int]:
    """Return time and day as MS-DOS packs them (4.4.6)."""
    year, month, day, hour, minute, second, *_ = time.gmtime(_seconds(member))
    return hour << 11 | minute << 5 | second >> 1, (year - 1980) << 9 | month << 5 | day
