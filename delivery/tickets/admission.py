"""Who is prepared next: a turn that ageing makes fair, and disk space that is promised to the one it is too short for.

The turn. A step of priority is worth `ageing` seconds of waiting. All tickets age at one rate, so their order never
changes while they wait: it is that of ``asked - priority * ageing``, computed once. Nothing starves, since a ticket is
overtaken only by those asked for within ``9 * ageing`` seconds after it.

The space. Artefacts leave the store at known times. The first ticket in turn that does not fit is promised the time at
which enough will have left (`Promise`); the promise is kept, never put off. Others run ahead of it only if they will
have left by then, or fit beside it: the backfilling that batch schedulers do with processors (EASY: Lifka, "The
ANL/IBM SP scheduling system", 1995), here with bytes.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

HIGHEST = 9
"""Priorities are 0 to 9; the highest runs first."""


class Waiting(NamedTuple):
    """What is asked for: bytes of the store, at most, for `keep` seconds."""

    name: str
    size: int
    keep: float


class Held(NamedTuple):
    """Bytes of the store that are taken, and the time at which they leave it."""

    size: int
    until: float


class Admission(NamedTuple):
    """What may be prepared now, in order, and when the first that can't will have its space."""

    admitted: list[str]
    promises: dict[str, float]


def turn(asked: float, priority: int, ageing: float) -> float:
    """Return where a ticket stands in the queue, the smallest first: a time, in seconds."""
    return asked - priority * ageing


def admit(
    queue: Iterable[Waiting],
    held: Iterable[Held],
    *,
    capacity: int,
    slots: int,
    now: float,
    promises: Mapping[str, float],
) -> Admission:
    """Choose what is prepared next.

    Parameters
    ----------
    queue
        Those that wait, in order of their turn.
    held
        What the store holds, and what is being prepared for it.
    capacity
        Bytes that the store may hold.
    slots
        How many more preparations may begin.
    now
        Seconds since 1970.
    promises
        Those of the last admission, by name; of those that still wait.
    """
    room = _Room(capacity, held)
    admitted: list[str] = []
    head = None
    for waiting in queue:
        if len(admitted) == slots:
            break
        if waiting.size > capacity:  # somebody else fills the disk: nobody can promise a time
            continue
        if head is None and waiting.size > room.free:
            head = room.promise(waiting, promises.get(waiting.name))
        elif head is None or head.leaves_room(waiting, now, room.free):
            room.take(Held(waiting.size, now + waiting.keep))
            admitted.append(waiting.name)
    if head:
        promises = {**promises, head.name: head.when}
    return Admission(admitted, {name: when for name, when in promises.items() if name not in admitted})


class _Room:
    """The store while an admission is thought through."""

    def __init__(self, capacity: int, held: Iterable[Held]) -> None:
        self._held = sorted(held, key=lambda item: item.until)
        self.free = capacity - sum(item.size for item in self._held)

    def take(self, item: Held) -> None:
        self.free -= item.size
        self._held.append(item)

    def promise(self, waiting: Waiting, given: float | None) -> "_Promise":
        """Promise the earliest time at which enough will have left, or the one that was promised before."""
        free, when = self.free, 0.0
        for item in sorted(self._held, key=lambda item: item.until):
            if free >= waiting.size:
                break
            free, when = free + item.size, item.until
        when = when if given is None else min(when, given)
        left = sum(item.size for item in self._held if item.until <= when)
        return _Promise(waiting.name, when, self.free + left - waiting.size)


class _Promise:
    """Space for the one called `name` at the time `when`; `spare` bytes are left beside it then."""

    def __init__(self, name: str, when: float, spare: int) -> None:
        self.name, self.when, self._spare = name, when, spare

    def leaves_room(self, waiting: Waiting, now: float, free: int) -> bool:
        """Return whether `waiting` may run without putting the promise off; if so, count it in."""
        if waiting.size > max(free, 0):
            return False
        if now + waiting.keep <= self.when:
            return True
        if waiting.size > max(self._spare, 0):
            return False
        self._spare -= waiting.size
        return True
