"""The sliding window: which of the projections that have arrived are reconstructed together.

The rule is that of the APS mini-app `sirt_stream`, to the letter, so that the same stream gives the same
windows: 10 projections with length 8 and step 3 make windows of 3, 6, 9, 6 and 3.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def windows(arrivals: Iterable[T], length: int, step: int) -> Iterator[tuple[T, ...]]:
    """Yield one window per turn, oldest projection first.

    A turn trims the window to `length`, then waits for up to `step` arrivals (fewer only at the end of the
    scan). A window that is not full yet grows by them; a full one loses its `step` oldest first. When nothing
    comes any more, each turn drops the `step` oldest, until none is left.

    Raises
    ------
    ValueError
        If `length` or `step` is less than one.
    """
    if length < 1 or step < 1:
        raise ValueError(f"a window needs a length and a step of at least 1, not {length} and {step}")
    source = iter(arrivals)
    held: deque[T] = deque()
    while True:
        _drop(held, len(held) - length)
        fresh = list(islice(source, step))
        if not fresh or len(held) >= length:
            _drop(held, step)
        held.extend(fresh)
        if not held:
            return
        yield tuple(held)


def _drop(held: deque[T], count: int) -> None:
    for _ in range(min(count, len(held))):
        held.popleft()
