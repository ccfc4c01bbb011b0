"""The sliding window: sizes worked out by hand from the rule, and by the APS worker's recorded session."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aps_mini_apps.sirt.window import windows


@pytest.mark.parametrize(
    ("count", "length", "step", "sizes"),
    [
        (10, 8, 3, [3, 6, 9, 6, 3]),
        (6, 4, 2, [2, 4, 4, 2]),  # the recorded session wrote windows 0 to 3
        (5, 3, 1, [1, 2, 3, 3, 3, 2, 1]),
        (4, 4, 4, [4]),
        (7, 2, 5, [5, 2]),
        (0, 4, 2, []),
    ],
)
def test_sizes(count: int, length: int, step: int, sizes: list[int]) -> None:
    assert [len(window) for window in windows(range(count), length, step)] == sizes


def test_contents_slide() -> None:
    assert list(windows("abcde", 3, 2)) == [
        ("a", "b"),
        ("a", "b", "c", "d"),
        ("d", "e"),
    ]


@given(st.integers(0, 60), st.integers(1, 20), st.integers(1, 20))
def test_every_arrival_is_used_in_order_and_windows_stay_bounded(count: int, length: int, step: int) -> None:
    made = list(windows(range(count), length, step))
    assert {arrival for window in made for arrival in window} == set(range(count))
    assert all(len(window) < length + step for window in made)
    assert all(window == tuple(range(window[0], window[0] + len(window))) for window in made)
    assert all(a[0] <= b[0] for a, b in itertools.pairwise(made))


def test_a_window_is_made_as_soon_as_its_step_is_in() -> None:
    taken = []

    def arrivals():
        for index in range(9):
            taken.append(index)
            yield index

    next(windows(arrivals(), 8, 2))
    assert taken == [0, 1]


@pytest.mark.parametrize(("length", "step"), [(0, 1), (1, 0)])
def test_lengths_and_steps_are_positive(length: int, step: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        next(windows([1], length, step))
