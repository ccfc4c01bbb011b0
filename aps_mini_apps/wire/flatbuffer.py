"""Reading a FlatBuffers message that may be corrupt: one root table, every bound checked.

A message starts with the position of its root table. The table starts with the way back to its vtable, which
holds its own size, the table's size and, for each slot, where in the table that field lies (0: it is absent).
Vectors and strings lie elsewhere, behind a relative position: a count of bytes, then the bytes. All numbers
are little-endian.
"""

import struct
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from aps_mini_apps.wire import WireError

Span = tuple[int, int]
"""First byte and the byte after the last one."""

ALIGNMENT = 8
"""Size of the widest scalar: padding between two parts of a message is always shorter than this."""

_U32 = struct.Struct("<I")
_I32 = struct.Struct("<i")
_SIZES = struct.Struct("<2H")


class RootTable:
    """The root table of the message `view`.

    Raises
    ------
    WireError
        From here as from every method, if something lies outside the message.
    """

    __slots__ = ("_offsets", "_size", "_start", "_view", "_vtable")

    def __init__(self, view: memoryview) -> None:
        self._view = view
        (start,) = self._unpack(_U32, 0, "root")
        (back,) = self._unpack(_I32, start, "root table")
        vtable = start - back
        vtable_size, size = self._unpack(_SIZES, vtable, "vtable")
        if vtable_size < _SIZES.size or vtable_size % 2 or vtable + vtable_size > len(view):
            raise WireError(f"a vtable of {vtable_size} bytes at byte {vtable} of {len(view)}")
        if size < _I32.size or start + size > len(view):
            raise WireError(f"a table of {size} bytes at byte {start} of {len(view)}")
        self._start, self._size, self._vtable = start, size, (vtable, vtable + vtable_size)
        self._offsets = struct.unpack_from(f"<{vtable_size // 2 - 2}H", view, vtable + _SIZES.size)

    @property
    def slots(self) -> int:
        """Number of slots that the sender's schema has at least."""
        return len(self._offsets)

    def position(self, slot: int, size: int) -> int | None:
        """Return where the `size` bytes of the field in `slot` begin; None if it is absent."""
        offset = self._offsets[slot] if slot < len(self._offsets) else 0
        if not offset:
            return None
        if not _I32.size <= offset <= self._size - size:
            raise WireError(f"the field in slot {slot} lies outside its table")
        return self._start + offset

    def read(self, slot: int, code: struct.Struct) -> tuple[Any, ...] | None:
        """Return the numbers of the field in `slot`; None if it is absent."""
        position = self.position(slot, code.size)
        return None if position is None else code.unpack_from(self._view, position)

    def number(self, slot: int, code: struct.Struct) -> Any:
        """Return the number in `slot`; an absent field means 0."""
        values = self.read(slot, code)
        return values[0] if values else 0

    def vector(self, slot: int) -> Span:
        """Return where the bytes of the vector or string in `slot` lie; an empty span if it is absent."""
        position = self.position(slot, _U32.size)
        if position is None:
            return 0, 0
        (relative,) = _U32.unpack_from(self._view, position)
        (count,) = self._unpack(_U32, position + relative, f"vector in slot {slot}")
        begin = position + relative + _U32.size
        if begin + count > len(self._view):
            raise WireError(f"the vector in slot {slot} claims {count} bytes, {len(self._view) - begin} follow")
        return begin, begin + count

    def check_cover(self, fields: Iterable[tuple[int, int]], vectors: Iterable[int]) -> None:
        """Refuse the message unless its parts lie side by side and account for every byte.

        Between the root's position, vtable, fields (`fields`: slot and size) and `vectors` (slots) there may
        be padding, which is short and zero. So a position that was changed in transit, which makes a field
        vanish, overlap or appear elsewhere, is seen even without a checksum.
        """
        parts = [(0, _U32.size), self._vtable, (self._start, self._start + _I32.size)]
        for slot, size in fields:
            position = self.position(slot, size)
            if position is not None:
                parts.append((position, position + size))
        for slot in vectors:
            begin, end = self.vector(slot)
            if begin:
                parts.append((begin - _U32.size, end))
        total = len(self._view)
        for (_, before), (after, _) in pairwise([*sorted(parts), (total, total)]):
            if not 0 <= after - before < ALIGNMENT or any(self._view[before:after]):
                raise WireError(f"bytes {before} to {after} of {total} belong to two fields or to none")

    def _unpack(self, code: struct.Struct, position: int, what: str) -> tuple[int, ...]:
        if not 0 <= position <= len(self._view) - code.size:
            raise WireError(f"the {what} lies at byte {position} of a message of {len(self._view)} bytes")
        return code.unpack_from(self._view, position)
