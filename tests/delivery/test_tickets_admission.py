"""The queue as arithmetic: nothing starves, no byte too many, promises are kept; whatever is asked for, and when."""

import hypothesis.strategies as st
from hypothesis import given, settings

from delivery.tickets.admission import HIGHEST, Held, Waiting, admit, turn

CAPACITY = 100


def admitted(queue, held=(), *, slots=9, now=0.0, promises=None):
    return admit(queue, held, capacity=CAPACITY, slots=slots, now=now, promises=promises or {})


def test_a_step_of_priority_is_worth_its_time_of_waiting():
    assert turn(100, 0, ageing=10) == turn(110, 1, ageing=10)
    late_and_urgent, early = turn(91, HIGHEST, ageing=10), turn(0, 0, ageing=10)
    assert early < late_and_urgent


def test_the_limit_of_preparations_holds():
    assert admitted([Waiting(name, 1, 9) for name in "abc"], slots=2).admitted == ["a", "b"]
    assert admitted([Waiting("a", 1, 9)], slots=0).admitted == []


def test_what_does_not_fit_waits_while_what_fits_and_leaves_in_time_runs():
    queue = [Waiting("big", 80, 5), Waiting("short", 20, 9), Waiting("long", 21, 11), Waiting("little", 20, 11)]
    result = admitted(queue, [Held(60, 10)])
    assert result.promises == {"big": 10}
    assert result.admitted == ["short", "little"]


def test_a_promise_is_not_put_off_by_those_that_stay_longer_than_they_said():
    queue = [Waiting("big", 80, 5), Waiting("little", 10, 5)]
    assert admitted(queue, [Held(60, 12)], now=8, promises={"big": 10}).admitted == []


def test_what_needs_no_space_never_waits_for_it():
    assert admitted([Waiting("big", 50, 5), Waiting("stream", 0, 99)], [Held(120, 10)]).admitted == ["stream"]


def test_what_fits_no_more_since_others_fill_the_disk_holds_nobody_up():
    assert admitted([Waiting("too big", 101, 5), Waiting("fits", 100, 5)]).admitted == ["fits"]


WISHES = st.lists(
    st.tuples(
        st.integers(0, 60),  # asked
        st.integers(0, HIGHEST),
        st.integers(1, CAPACITY),  # bytes
        st.integers(1, 20),  # kept
        st.integers(0, 3),  # seconds to prepare
    ),
    min_size=1,
    max_size=25,
)


@settings(deadline=None, max_examples=50)
@given(WISHES, st.integers(1, 4), st.integers(1, 5))
def test_all_are_served_within_the_space_and_as_promised(wishes, slots, ageing):
    preparing: dict[int, tuple[int, Held]] = {}
    stored: list[Held] = []
    began: dict[int, int] = {}
    promised: dict[str, float] = {}
    first: dict[str, float] = {}
    order = sorted(range(len(wishes)), key=lambda i: (turn(wishes[i][0], wishes[i][1], ageing), i))
    now = 0
    while len(began) < len(wishes):
        assert now < 5000, "somebody starves"
        for index, (end, held) in list(preparing.items()):
            if end <= now:
                del preparing[index]
                stored.append(Held(held.size, end + wishes[index][3]))
        stored = [held for held in stored if held.until > now]
        queue = [Waiting(str(i), wishes[i][2], wishes[i][3]) for i in order if i not in began and wishes[i][0] <= now]
        under_way = [Held(held.size, max(now, end) + wishes[i][3]) for i, (end, held) in preparing.items()]
        result = admit(
            queue, stored + under_way, capacity=CAPACITY, slots=slots - len(preparing), now=now, promises=promised
        )
        promised = result.promises
        for name, when in promised.items():
            assert when <= first.setdefault(name, when)
        for index in map(int, result.admitted):
            began[index] = now
            preparing[index] = now + wishes[index][4], Held(wishes[index][2], 0)
        assert sum(held.size for held in stored) + sum(held.size for _, held in preparing.values()) <= CAPACITY
        assert len(preparing) <= slots
        now += 1


@settings(deadline=None)
@given(st.integers(51, CAPACITY), st.integers(1, 30), st.lists(st.integers(1, 49), min_size=1, max_size=3))
def test_the_big_one_has_its_turn_however_many_little_ones_come(big, keep, little):
    held = [Held(60, 10.0)]
    promised: dict[str, float] = {}
    for now in range(12):
        held = [item for item in held if item.until > now]
        queue = [Waiting("big", big, keep)] + [Waiting(f"{now}-{i}", size, keep) for i, size in enumerate(little)]
        result = admit(queue, held, capacity=CAPACITY, slots=99, now=now, promises=promised)
        promised = result.promises
        if "big" in result.admitted:
            assert now <= 10
            return
        sizes = {item.name: item.size for item in queue}
        held += [Held(sizes[name], now + keep) for name in result.admitted]
    raise AssertionError("the big one never had its turn")
