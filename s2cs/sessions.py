"""Sessions: what a control server knows of a tunnel's end, and the states that it goes through.

    requested --greet--> greeted --open--> streaming
    any of these three   --release--> released   --fail--> failed   --expire--> expired

All that belongs to a session is in its object; nothing of it is shared. A state is changed before the work that it
announces is done, so that of two requests for the same change the second is refused: `open`, then start the proxy, and
`fail` if that goes wrong. Times are seconds of the wall clock, since they outlive the process. Nothing here waits,
listens or reads files, and nothing is safe against threads: the server's event loop owns it all.
"""

import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import cycle

from ministream.base.errors import UserError
from s2cs.addresses import Address

REQUEST_TIMEOUT = 180.0
"""Seconds from `req` to `update`: SciStream's figure."""

REPLAY_MEMORY = 3600.0
"""Seconds for which the uid of an ended session is refused."""

_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Role(StrEnum):
    """Which end of the tunnel: in front of the service (PROD, inbound) or of the application (CONS, outbound)."""

    PROD = "PROD"
    CONS = "CONS"


class State(StrEnum):
    """Where a session stands."""

    REQUESTED = "requested"
    GREETED = "greeted"
    STREAMING = "streaming"
    RELEASED = "released"
    FAILED = "failed"
    EXPIRED = "expired"

    @property
    def live(self) -> bool:
        """Whether the session holds ports, and perhaps a proxy."""
        return self in _LIVE


_LIVE = frozenset({State.REQUESTED, State.GREETED, State.STREAMING})


class IllegalTransition(UserError):  # noqa: N818 - says what is wrong, as its base does
    """The session is in a state from which the wanted one cannot be reached."""


class UnknownSession(UserError):  # noqa: N818
    """No live session has this uid."""


@dataclass(slots=True, kw_only=True)
class Session:
    """One end of a tunnel, on this gateway.

    Raises
    ------
    UserError
        If the uid could not be the name of a folder, `num_conn` is not positive or `rate` is negative.
    """

    uid: str
    role: Role
    owner: str
    """Who asked for it: an identity in words, which names its issuer, too."""
    num_conn: int
    rate: int = 0
    """Bytes per second; 0: unlimited."""
    encrypted: bool = False
    kind: str = ""
    """Name of the proxy's kind, as `proxy_kind` takes it."""
    host: str
    """Address on which the proxy listens."""
    ports: range
    """One contiguous block, a port per connection."""
    targets: tuple[Address, ...] = ()
    peer_certificate: str = ""
    """PEM of the other gateway's certificate for this session."""
    state: State = State.REQUESTED
    reason: str = ""
    """Why it ended, or why its proxy was last restarted."""
    created: float = 0.0
    changed: float = 0.0
    """When it came into its present state."""
    deadline: float = 0.0
    """When it must be streaming."""
    lease: float = 0.0
    """Seconds that a renewal lasts; 0: no lease."""
    lease_until: float = 0.0
    """When the lease runs out; 0: never."""
    ends: float = 0.0
    """When it ends even if renewed; 0: never."""
    idle: float = 0.0
    """Seconds without traffic after which it ends; 0: never."""
    last_activity: float = 0.0
    restarts: int = 0
    """How often its proxy had to be restarted."""
    clock: Callable[[], float] = field(default=time.time, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_uid(self.uid)
        if self.num_conn < 1:
            raise UserError(f"session {self.uid}: {self.num_conn} connections asked for; give num_conn of 1 or more")
        if self.rate < 0:
            raise UserError(
                f"session {self.uid}: rate {self.rate} is negative; give bytes per second, or 0 for no limit"
            )
        self.created = self.created or self.clock()
        self.changed = self.changed or self.created
        self.last_activity = self.last_activity or self.created
        self.deadline = self.deadline or self.created + REQUEST_TIMEOUT

    @property
    def listeners(self) -> tuple[Address, ...]:
        """Where the proxy listens, one address a connection."""
        return tuple(Address(self.host, port) for port in self.ports)

    def pairs(self) -> tuple[tuple[Address, Address], ...]:
        """Return (listener, target) for each connection; targets repeat in turn, and those beyond are left out."""
        return tuple(zip(self.listeners, cycle(self.targets), strict=False))

    def greet(self, targets: tuple[Address, ...] = ()) -> None:
        """Take the greeting; `targets` are the addresses of the service, and none for an outbound session."""
        self._move(State.GREETED, State.REQUESTED)
        self.targets = targets

    def open(self, targets: tuple[Address, ...], peer_certificate: str = "") -> None:
        """Begin to stream to `targets`; the first lease begins.

        Raises
        ------
        UserError
            If there are no targets.
        """
        if not targets:
            raise UserError(f"session {self.uid}: update names no target; name at least one address")
        self._move(State.STREAMING, State.GREETED)
        self.targets, self.peer_certificate = targets, peer_certificate
        self.last_activity = self.changed
        self.renew()

    def release(self, reason: str = "released by the user") -> None:
        """End it as asked."""
        self._move(State.RELEASED, *_LIVE, reason=reason)

    def fail(self, reason: str) -> None:
        """End it because of a fault."""
        self._move(State.FAILED, *_LIVE, reason=reason)

    def expire(self, reason: str) -> None:
        """End it because a time is over; `overdue` says which."""
        self._move(State.EXPIRED, *_LIVE, reason=reason)

    def renew(self) -> float:
        """Begin the lease anew, as far as `ends` lets it; return its seconds (0: no lease).

        A server that was restarted renews all leases, since nobody could renew them while it was away.
        """
        if not self.state.live:
            raise IllegalTransition(f"session {self.uid} is {self.state}: its lease cannot be renewed; open a new one")
        if not self.lease:
            return 0.0
        now = self.clock()
        seconds = min(self.lease, max(self.ends - now, 0.0)) if self.ends else self.lease
        self.lease_until = now + seconds
        return seconds

    def touch(self) -> None:
        """Note that data flow, or that connections are open: the idle time begins anew."""
        self.last_activity = self.clock()

    def note_restart(self, reason: str) -> None:
        """Note that the proxy died of `reason` and was started again."""
        self.restarts += 1
        self.reason = reason

    def overdue(self, now: float) -> str:
        """Return why its time is over, or nothing if it is not."""
        if not self.state.live:
            return ""
        if self.ends and now >= self.ends:
            return f"it may last {self.ends - self.created:.0f} s, and these have passed"
        if self.state is not State.STREAMING:
            missing = "hello" if self.state is State.REQUESTED else "update"
            return f"no {missing} came within {self.deadline - self.created:.0f} s" if now >= self.deadline else ""
        if self.lease_until and now >= self.lease_until:
            return f"its lease of {self.lease:.0f} s was not renewed"
        if self.idle and now >= self.last_activity + self.idle:
            return f"no data for {self.idle:.0f} s"
        return ""

    def _move(self, state: State, *allowed: State, reason: str = "") -> None:
        if self.state not in allowed:
            raise IllegalTransition(_refusal(self, state))
        self.state, self.reason, self.changed = state, reason, self.clock()


def _refusal(session: Session, wanted: State) -> str:
    now = f"session {session.uid} is {session.state}"
    if not session.state.live:
        why = f" ({session.reason})" if session.reason else ""
        return f"{now}{why} and cannot become {wanted}; request a new session"
    if session.state is State.REQUESTED:
        return f"{now} and cannot become {wanted}; hello must come first"
    return f"{now} and cannot become {wanted} again; release it and request a new session"


def check_uid(uid: str) -> str:
    """Return `uid`, or raise `UserError` if it could not be the name of a file, or a word of a log line."""
    if not _UID.fullmatch(uid):
        raise UserError(f"uid {uid[:80]!r} is refused: give 1 to 64 letters, digits, dots, dashes or underscores")
    return uid


class Sessions:
    """The sessions of a control server by uid, and for an hour the uids of those that ended."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._present: dict[str, Session] = {}
        self._ended: dict[str, Session] = {}  # nothing of them is left but this

    def __len__(self) -> int:
        return len(self._present)

    def __contains__(self, uid: object) -> bool:
        return uid in self._present

    def add(self, session: Session) -> None:
        """Take in a session; `UserError` if its uid is known."""
        self.refuse_known(session.uid)
        self._present[session.uid] = session

    def refuse_known(self, uid: str) -> None:
        """Raise `UserError` if `uid` is in use, or was until lately: a replayed request shall open nothing."""
        if known := self._present.get(uid) or self._ended.get(uid):
            raise UserError(f"uid {uid} is known already (its session is {known.state}); request with a fresh uid")

    def get(self, uid: str) -> Session:
        """Return the session; `UnknownSession`, with the end that it took if it had one, if there is none."""
        if session := self._present.get(uid):
            return session
        if ended := self._ended.get(uid):
            raise UnknownSession(f"session {uid} is over: {ended.state}, {ended.reason or 'no reason given'}")
        raise UnknownSession(f"no session {uid[:80]!r} is known here; was it requested from this control server?")

    def remove(self, uid: str) -> Session:
        """Take out a session whose proxy and ports are gone; its uid stays refused for an hour."""
        session = self.get(uid)
        del self._present[uid]
        self.remember(session)
        return session

    def remember(self, session: Session) -> None:
        """Refuse the uid of a session that has ended, here or before a restart."""
        session.peer_certificate = ""  # the bulk of what would be kept for an hour
        self._ended[session.uid] = session

    def forget_old(self) -> list[str]:
        """Forget those that ended more than an hour ago; return their uids, which may be used again."""
        horizon = self._clock() - REPLAY_MEMORY
        old = [uid for uid, session in self._ended.items() if session.changed < horizon]
        for uid in old:
            del self._ended[uid]
        return old

    def live(self) -> list[Session]:
        """Return the sessions that have not ended, oldest first."""
        return [session for session in self._present.values() if session.state.live]

    def owned_by(self, owner: str) -> list[Session]:
        """Return the live sessions of `owner`, oldest first."""
        return [session for session in self.live() if session.owner == owner]

    def counts(self) -> dict[State, int]:
        """Return how many sessions are in each state; of those that ended, the last hour's."""
        found = Counter(session.state for group in (self._present, self._ended) for session in group.values())
        return {state: found[state] for state in State}

    def due(self, now: float) -> list[Session]:
        """Return the live sessions whose time is over; `Session.overdue` says why."""
        return [session for session in self.live() if session.overdue(now)]
