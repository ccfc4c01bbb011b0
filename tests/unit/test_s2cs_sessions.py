"""Sessions: the states and their order, the times that end them, and the registry by uid."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ministream.base.errors import UserError
from s2cs.addresses import Address
from s2cs.sessions import IllegalTransition, Role, Session, Sessions, State, UnknownSession, check_uid

TARGETS = (Address("192.168.100.10", 5560), Address("192.168.100.10", 5561))


class Clock:
    """Shows the time that it is told."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def session(clock: Clock, uid: str = "scan-1", **values: object) -> Session:
    first = {"uid": uid, "role": Role.PROD, "owner": "alice", "num_conn": 5, "host": "127.0.0.1"}
    return Session(**(first | {"ports": range(5100, 5105)} | values), clock=clock)  # type: ignore[arg-type]


def streaming(clock: Clock, uid: str = "scan-1", **values: object) -> Session:
    made = session(clock, uid, **values)
    made.greet()
    made.open(TARGETS)
    return made


def test_a_session_goes_from_request_to_release(clock: Clock) -> None:
    made = session(clock)
    assert made.state is State.REQUESTED
    clock.now += 1
    made.greet(TARGETS[:1])
    assert (made.state, made.targets, made.changed) == (State.GREETED, TARGETS[:1], clock.now)
    clock.now += 1
    made.open(TARGETS, "PEM")
    assert (made.state, made.targets, made.peer_certificate) == (State.STREAMING, TARGETS, "PEM")
    made.release()
    assert made.state is State.RELEASED
    assert not made.state.live
    assert made.created == clock.now - 2


def test_each_listener_leads_to_its_target_in_turn(clock: Clock) -> None:
    made = streaming(clock)
    assert [str(listener) for listener in made.listeners] == [f"127.0.0.1:{port}" for port in range(5100, 5105)]
    assert [target for _, target in made.pairs()] == [TARGETS[0], TARGETS[1], TARGETS[0], TARGETS[1], TARGETS[0]]
    assert [listener for listener, _ in made.pairs()] == list(made.listeners)
    assert session(clock).pairs() == ()


def test_targets_beyond_the_connections_are_left_out(clock: Clock) -> None:
    made = session(clock, num_conn=1, ports=range(5100, 5101))
    made.greet(TARGETS)
    made.open(TARGETS)
    assert made.pairs() == ((Address("127.0.0.1", 5100), TARGETS[0]),)


def test_two_sessions_share_nothing(clock: Clock) -> None:
    one, other = streaming(clock, "one"), session(clock, "other", ports=range(5110, 5115))
    one.note_restart("signal 9")
    assert (other.targets, other.restarts, other.reason) == ((), 0, "")
    assert not set(one.listeners) & set(other.listeners)


def test_a_refused_step_names_uid_state_and_what_to_do(clock: Clock) -> None:
    made = session(clock)
    with pytest.raises(
        IllegalTransition, match="scan-1 is requested and cannot become streaming; hello must come first"
    ):
        made.open(TARGETS)
    made.greet()
    with pytest.raises(IllegalTransition, match="scan-1 is greeted and cannot become greeted again"):
        made.greet()
    made.open(TARGETS)
    with pytest.raises(IllegalTransition, match="scan-1 is streaming and cannot become streaming again"):
        made.open(TARGETS[:1], "stolen")
    assert (made.targets, made.peer_certificate) == (TARGETS, "")
    made.fail("the proxy died 5 times")
    with pytest.raises(
        IllegalTransition, match=r"scan-1 is failed \(the proxy died 5 times\) and cannot become released"
    ):
        made.release()
    with pytest.raises(IllegalTransition, match="lease cannot be renewed"):
        made.renew()
    assert made.reason == "the proxy died 5 times"


def test_an_update_without_targets_changes_nothing(clock: Clock) -> None:
    made = session(clock)
    made.greet(TARGETS)
    with pytest.raises(UserError, match="update names no target"):
        made.open(())
    assert (made.state, made.targets) == (State.GREETED, TARGETS)


@pytest.mark.parametrize(
    ("values", "reason"),
    [({"num_conn": 0}, "num_conn of 1 or more"), ({"num_conn": -5}, "num_conn"), ({"rate": -1}, "rate -1 is negative")],
)
def test_impossible_wishes_are_refused(clock: Clock, values: dict[str, object], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        session(clock, **values)


@settings(deadline=None)
@given(st.text(max_size=70))
def test_a_uid_that_is_taken_is_a_harmless_file_name(uid: str) -> None:
    try:
        check_uid(uid)
    except UserError as error:
        text = str(error)
    else:
        text = ""
        assert 1 <= len(uid) <= 64
        assert set(uid) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
        assert uid[0] not in ".-"
    assert "\n" not in text


@pytest.mark.parametrize("uid", ["", ".", "..", "../x", "a/b", "-rf", "a b", "a\n", "a\0", "é", "x" * 65])
def test_a_uid_that_could_harm_is_refused(clock: Clock, uid: str) -> None:
    with pytest.raises(UserError, match="is refused: give 1 to 64"):
        session(clock, uid)


@pytest.mark.parametrize("uid", ["d2b4ee2c-5dd5-11ee-8c99-0242ac120002", "3f0e1d2c3b4a", "scan_7.2", "x" * 64])
def test_scistreams_uids_are_taken(uid: str) -> None:
    assert check_uid(uid) == uid


def test_a_request_has_180_seconds_to_become_a_stream(clock: Clock) -> None:
    made = session(clock)
    assert made.overdue(clock.now + 179.9) == ""
    assert made.overdue(clock.now + 180) == "no hello came within 180 s"
    made.greet()
    assert made.overdue(clock.now + 180) == "no update came within 180 s"
    made.open(TARGETS)
    assert made.overdue(clock.now + 1e9) == ""


def test_a_lease_ends_unless_it_is_renewed(clock: Clock) -> None:
    made = streaming(clock, lease=60.0)
    assert made.overdue(clock.now + 59.9) == ""
    assert made.overdue(clock.now + 60) == "its lease of 60 s was not renewed"
    clock.now += 59
    assert made.renew() == 60.0
    assert made.overdue(clock.now + 59.9) == ""
    assert made.overdue(clock.now + 60) == "its lease of 60 s was not renewed"


def test_without_a_lease_there_is_nothing_to_renew(clock: Clock) -> None:
    made = streaming(clock)
    assert made.renew() == 0.0
    assert made.lease_until == 0.0


def test_no_renewal_outlasts_the_policys_end(clock: Clock) -> None:
    made = streaming(clock, lease=60.0, ends=clock.now + 100)
    clock.now += 50
    assert made.renew() == 50.0
    assert made.overdue(clock.now + 49.9) == ""
    assert made.overdue(clock.now + 50) == "it may last 100 s, and these have passed"
    clock.now += 51
    assert made.renew() == 0.0
    assert made.overdue(clock.now)
    waiting = session(clock, "waiting", ends=clock.now + 10)
    assert waiting.overdue(clock.now + 10) == "it may last 10 s, and these have passed"


def test_a_tunnel_without_data_ends(clock: Clock) -> None:
    made = session(clock, idle=30.0)
    clock.now += 100
    made.greet()
    made.open(TARGETS)
    assert made.overdue(clock.now + 29.9) == ""  # the time before it was open is not idle time
    assert made.overdue(clock.now + 30) == "no data for 30 s"
    clock.now += 20
    made.touch()
    assert made.overdue(clock.now + 29.9) == ""


def test_a_session_that_ended_is_not_overdue(clock: Clock) -> None:
    made = streaming(clock, lease=60.0)
    made.expire(made.overdue(clock.now + 60))
    assert (made.state, made.reason) == (State.EXPIRED, "its lease of 60 s was not renewed")
    assert made.overdue(clock.now + 1e9) == ""


def test_a_restart_is_counted_and_named(clock: Clock) -> None:
    made = streaming(clock)
    made.note_restart("haproxy was ended by SIGKILL")
    made.note_restart("haproxy exited with 1")
    assert (made.restarts, made.reason, made.state) == (2, "haproxy exited with 1", State.STREAMING)


def test_a_uid_in_use_is_refused_and_the_session_stays(clock: Clock) -> None:
    sessions = Sessions(clock)
    first = session(clock)
    sessions.add(first)
    with pytest.raises(UserError, match=r"uid scan-1 is known already .*requested"):
        sessions.add(session(clock, owner="mallory"))
    assert sessions.get("scan-1") is first
    assert "scan-1" in sessions


def test_a_uid_is_refused_for_an_hour_after_the_end_of_its_session(clock: Clock) -> None:
    sessions = Sessions(clock)
    sessions.add(session(clock))
    sessions.get("scan-1").release()
    sessions.remove("scan-1")
    assert len(sessions) == 0
    clock.now += 3600
    assert sessions.forget_old() == []
    with pytest.raises(UserError, match=r"known already .*released"):
        sessions.add(session(clock))
    clock.now += 1
    assert sessions.forget_old() == ["scan-1"]
    sessions.add(session(clock))
    assert len(sessions) == 1


def test_an_ended_session_is_remembered_with_its_reason(clock: Clock) -> None:
    sessions = Sessions(clock)
    sessions.add(streaming(clock, lease=60.0))
    sessions.get("scan-1").expire("its lease of 60 s was not renewed")
    sessions.remove("scan-1")
    with pytest.raises(UnknownSession, match="scan-1 is over: expired, its lease of 60 s was not renewed"):
        sessions.get("scan-1")
    with pytest.raises(UnknownSession, match="over"):
        sessions.remove("scan-1")
    with pytest.raises(UnknownSession, match="no session 'other' is known here"):
        sessions.get("other")


def test_live_sessions_are_found_by_owner_and_by_time(clock: Clock) -> None:
    sessions = Sessions(clock)
    waiting = session(clock, "waiting")
    leased = streaming(clock, "leased", lease=300.0, owner="bob")
    ended = streaming(clock, "ended", owner="bob")
    for each in (waiting, leased, ended):
        sessions.add(each)
    ended.fail("the proxy refused its settings")
    assert sessions.live() == [waiting, leased]
    assert sessions.owned_by("bob") == [leased]
    assert sessions.due(clock.now + 179) == []
    assert sessions.due(clock.now + 180) == [waiting]
    assert sessions.due(clock.now + 300) == [waiting, leased]


def test_sessions_are_counted_by_state(clock: Clock) -> None:
    sessions = Sessions(clock)
    for number in range(3):
        sessions.add(streaming(clock, f"s{number}"))
    sessions.add(session(clock, "waiting"))
    sessions.get("s0").release()
    sessions.remove("s0")
    expected = dict.fromkeys(State, 0) | {State.STREAMING: 2, State.REQUESTED: 1, State.RELEASED: 1}
    assert sessions.counts() == expected
    clock.now += 3601
    sessions.forget_old()
    assert sessions.counts()[State.RELEASED] == 0


def test_old_sessions_leave_nothing_behind(clock: Clock) -> None:
    sessions = Sessions(clock)
    for number in range(5000):
        clock.now += 10
        made = session(clock, f"s{number}")
        sessions.add(made)
        made.release()
        sessions.remove(made.uid)
        sessions.forget_old()
    assert sessions.counts()[State.RELEASED] <= 361


NEXT = {
    ("requested", "greet"): "greeted",
    ("greeted", "open"): "streaming",
} | {
    (state, step): end
    for state in ("requested", "greeted", "streaming")
    for step, end in (("release", "released"), ("fail", "failed"), ("expire", "expired"))
}  # fmt: skip


class Life(RuleBasedStateMachine):
    """Any steps in any order: only those of the table change the state, and a refused one changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.session = session(self.clock, lease=60.0, ends=self.clock.now + 200)
        self.expected = "requested"

    @rule(
        step=st.sampled_from(["greet", "open", "release", "fail", "expire"]),
        named=st.sampled_from([TARGETS, TARGETS[:1]]),
    )
    def take(self, step: str, named: tuple[Address, ...]) -> None:
        arguments = {"greet": (named,), "open": (named, "PEM"), "release": (), "fail": ("x",), "expire": ("y",)}
        before = repr(self.session)
        wanted = NEXT.get((self.expected, step))
        if wanted is None:
            with pytest.raises(IllegalTransition, match=f"scan-1 is {self.expected}"):
                getattr(self.session, step)(*arguments[step])
            assert repr(self.session) == before
        else:
            getattr(self.session, step)(*arguments[step])
            self.expected = wanted

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def renew(self) -> None:
        if self.session.state.live:
            assert self.session.renew() <= 60.0
        else:
            with pytest.raises(IllegalTransition):
                self.session.renew()

    @invariant()
    def is_as_expected(self) -> None:
        made = self.session
        assert made.state == self.expected
        assert made.state.live == (self.expected in {"requested", "greeted", "streaming"})
        assert made.created <= made.changed <= self.clock.now
        assert made.lease_until <= made.ends + 1e-6 or made.lease_until <= self.clock.now
        assert len(made.pairs()) == (made.num_conn if made.targets else 0)
        if self.clock.now >= made.ends and made.state.live:
            assert made.overdue(self.clock.now)


TestLife = Life.TestCase
TestLife.settings = settings(deadline=None, max_examples=60, stateful_step_count=20)
