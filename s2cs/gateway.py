"""What a control server does with sessions, whatever the protocol that asks: open, greet, update, renew, release.

All that belongs to a session hangs on one object (`_Live`): its state, its lock, its keys, its proxy. Whatever takes
ports, files or a process is undone in `_end`, the only way out, whether the session was released, failed or expired.
Changes that must not stop half-way run in tasks of their own: a client that goes away does not interrupt them.
Everything happens on one event loop; nothing is safe against threads.
"""

import asyncio
import shutil
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ministream.base import log
from ministream.base.errors import UserError
from s2cs.addresses import Address, parse_address
from s2cs.auth import Identity
from s2cs.dataservers.spec import ProxySpec, Tls, Traffic
from s2cs.policy import Policy
from s2cs.ports import PortPool, PortsExhausted
from s2cs.sessions import Role, Session, Sessions, State, check_uid
from s2cs.store import ProcessRecord, SessionStore
from s2cs.terms import (
    AlreadyKnown,
    Answer,
    Draining,
    Interrupted,
    NotYours,
    OnFailed,
    OnRestart,
    Proxies,
    Proxy,
    Terms,
    TimedOut,
    Unmet,
    View,
    Wish,
)
from s2cs.trust import SessionKeys, check_peer_certificate, load_session_keys, make_session_keys, write_private

SCISTREAM_RATE = 10_000
"""What SciStream's clients ask for unless told otherwise; as bytes per second it would be no tunnel at all."""

MAX_TARGETS, MAX_GREETINGS, MAX_TEXT = 256, 1000, 300
_PEER_CERTIFICATE = "peer.crt"
_DRAINING = "the control server is being ended; ask again when it is back"
_RETURNING = (State.GREETED, State.STREAMING)

_NO_TRAFFIC = Traffic(bytes_in=0, bytes_out=0, connections=0)

T = TypeVar("T")


@dataclass(slots=True)
class _Live:
    """A session and what it holds in this process."""

    session: Session
    folder: Path
    keys: SessionKeys | None
    warnings: tuple[str, ...] = ()
    proxy: Proxy | None = None
    traffic: Traffic = _NO_TRAFFIC
    setup: float = 0.0
    """Seconds of work that setting it up has taken, without the waiting."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    moved: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the session is no longer just requested."""


class Gateway:
    """The sessions of one control server and all that happens to them."""

    def __init__(
        self,
        terms: Terms,
        *,
        sessions: Sessions,
        ports: PortPool,
        store: SessionStore,
        policy: Policy,
        proxies: Proxies,
        observe_setup: Callable[[float], None] = lambda _seconds: None,
    ) -> None:
        self._terms, self._sessions, self._ports, self._store = terms, sessions, ports, store
        self._policy, self._proxies, self._observe_setup = policy, proxies, observe_setup
        self._live: dict[str, _Live] = {}
        self._greetings: dict[tuple[str, str], tuple[float, tuple[str, ...]]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._draining = False

    async def request(self, identity: Identity, wish: Wish) -> Answer:
        """Take in a session, wait until it is greeted, and tell its listeners."""
        began = time.perf_counter()
        live, greeting = self._admit(identity, wish)
        live.setup = time.perf_counter() - began
        try:
            if greeting is not None:
                self._greet(live, greeting)
            await live.moved.wait()
        except asyncio.CancelledError:
            self._run_aside(self._abandon(live))
            raise
        _raise_if_ended(live.session)
        return self._answer(live, live.session.targets)

    def hello(self, identity: Identity, uid: str, role: str, targets: tuple[str, ...]) -> tuple[Address, ...]:
        """Greet a session, or keep the greeting for its request; return the listeners where they are known.

        What an outbound session is greeted with is not looked at: SciStream's clients name listeners there that mean
        nothing, and call themselves the producer. A second greeting changes nothing.
        """
        _read_role(role)
        if uid not in self._sessions:
            self._keep_greeting(identity, uid, targets)
            return ()
        live = self._mine(identity, uid)
        if live.session.state is State.REQUESTED:
            self._greet(live, _read_targets(targets) if live.session.role is Role.PROD else ())
        return self._advertised(live.session)

    async def update(
        self, identity: Identity, uid: str, role: str, targets: tuple[str, ...], peer_certificate: str
    ) -> Answer:
        """Open the tunnel's end to `targets`; return when its listeners accept connections."""
        live = self._mine(identity, uid)
        if role and _read_role(role) is not live.session.role:
            raise UserError(f"session {uid} was requested as {live.session.role}, but update names {role}")
        wanted = _read_targets(targets)
        await asyncio.shield(self._run(self._update(live, identity, wanted, peer_certificate)))
        return self._answer(live, wanted)

    async def release(self, identity: Identity, uid: str) -> None:
        """End what the request began; return when nothing of it is left."""
        live = self._mine(identity, uid)
        await asyncio.shield(self._run(self._finish(live, Session.release)))

    def renew(self, identity: Identity, uid: str) -> float:
        """Begin the lease anew and return its seconds (0: no lease).

        A session has a lease once a client has renewed it: SciStream's clients, and one that has left a tunnel up
        on purpose, never do, and the idle time alone bounds theirs.
        """
        live = self._mine(identity, uid)
        live.session.lease = self._terms.lease
        lease = live.session.renew()
        self._save(live)
        return lease

    async def views(self, identity: Identity | None, uid: str = "") -> list[View]:
        """Return the live sessions of `identity` (None: of all), or the one of `uid`, with their traffic now."""
        if identity and uid:
            chosen = [self._mine(identity, uid)]
        else:
            owner = identity and _owner(identity)
            chosen = [live for live in self._live.values() if owner in (None, live.session.owner)]
        await asyncio.gather(*(self._measure(live) for live in chosen))
        return [
            View(session=live.session, listeners=self._advertised(live.session), traffic=live.traffic)
            for live in chosen
        ]

    def counts(self) -> dict[State, int]:
        """Return how many sessions are in each state; of those that ended, the last hour's."""
        return self._sessions.counts()

    @property
    def free_ports(self) -> int:
        """How many ports no session holds."""
        return self._ports.free

    async def sweep(self) -> None:
        """End the sessions whose time is over; forget old ones, and greetings whose request never came."""
        now = time.time()
        self._forget_old()
        self._greetings = {
            key: kept for key, kept in self._greetings.items() if now < kept[0] + self._terms.request_timeout
        }
        due = [self._live[session.uid] for session in self._sessions.due(now) if session.uid in self._live]
        await asyncio.gather(*(self._expire(live) for live in due))

    def forgive_pause(self, seconds: float) -> None:
        """Give all sessions their time again, after the server stood still for so long."""
        log.get_logger().warning("stood still: all times begin anew", seconds=round(seconds))
        for live in self._live.values():
            if live.session.state.live:
                self._begin_anew(live.session)

    async def note_traffic(self) -> None:
        """Note which tunnels are in use: the idle time of the others runs on."""
        await asyncio.gather(*(self._measure(live) for live in list(self._live.values())))

    async def restore(self) -> None:
        """Bring back the sessions of the server that ran here before; end whatever has no session any more."""
        waiting = []
        for session, process in self._store.load():
            if session.state in _RETURNING and (live := self._take_back(session)):
                live.proxy = await self._adopt(live, process) if process else None
                if live.session.state is State.STREAMING and not live.proxy:
                    waiting.append(live)
            else:
                self._remember(session)
        self._forget_old()
        await self._proxies.end_strangers([live.proxy.record for live in self._live.values() if live.proxy])
        for folder in set(self._terms.folder.iterdir()) - {live.folder for live in self._live.values()}:
            shutil.rmtree(folder)
        await asyncio.gather(*(self._open_again(live) for live in waiting))

    def drain(self) -> None:
        """Take no new sessions; those that wait for a greeting end."""
        self._draining = True
        for live in list(self._live.values()):
            if live.session.state is State.REQUESTED:
                self._run_aside(self._finish(live, lambda session: session.fail(_DRAINING)))

    @property
    def at_rest(self) -> bool:
        """Whether no session is live."""
        return not self._live

    async def close(self) -> None:
        """End all that is left."""
        self.drain()
        for live in list(self._live.values()):
            self._run_aside(self._finish(live, lambda session: session.release("the control server was ended")))
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _admit(self, identity: Identity, wish: Wish) -> tuple[_Live, tuple[Address, ...] | None]:
        """Judge a request and take what its session needs, or nothing; return it with its greeting if there is one."""
        if self._draining:
            raise Draining(_DRAINING)
        role, owner = _read_role(wish.role), _owner(identity)
        self._refuse_known(check_uid(wish.uid))
        if wish.num_conn < 1:
            raise UserError(f"{wish.num_conn} connections are asked for; give num_conn of 1 or more")
        greeting = self._greeting(owner, role, wish)
        warnings = [*self._judge_encryption(wish)]
        rate = self._judge_rate(wish, warnings)
        grant = self._policy.judge(identity, role, wish.num_conn, rate, len(self._sessions.owned_by(owner)))
        if grant.rate and not self._proxies.supports_rate:
            raise Unmet(
                f"the policy limits your sessions to {grant.rate} bytes per second, which {self._proxies.name} cannot "
                "keep: the operator can choose --type nginx, which can, or lift the limit"
            )
        ports = self._ports.take(wish.num_conn)
        folder = self._terms.folder / wish.uid
        try:
            session = Session(
                uid=wish.uid,
                role=role,
                owner=owner,
                num_conn=wish.num_conn,
                rate=grant.rate,
                encrypted=wish.encrypted,
                kind=self._proxies.name,
                host=self._terms.host,
                ports=ports,
                deadline=time.time() + self._terms.request_timeout,
                ends=time.time() + grant.max_lease if grant.max_lease else 0.0,
                idle=self._terms.idle,
            )
            folder.mkdir(mode=0o700)
            keys = make_session_keys(folder) if wish.encrypted else None
            live = _Live(session, folder, keys, tuple(warnings))
            self._store.save(session)
        except BaseException:
            self._ports.give_back(ports)
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._sessions.add(session)
        self._live[session.uid] = live
        self._log(live, "session requested", connections=wish.num_conn, first_port=ports.start)
        return live, greeting

    def _greeting(self, owner: str, role: Role, wish: Wish) -> tuple[Address, ...] | None:
        """Return what the session was greeted with already: by its own request, or by a hello that came before."""
        _, kept = self._greetings.pop((owner, wish.uid), (0.0, None))
        given = wish.targets if wish.greeted else kept
        if given is None:
            return None
        return _read_targets(given) if role is Role.PROD else ()

    def _judge_encryption(self, wish: Wish) -> Iterator[str]:
        """Yield the warning that a tunnel without encryption deserves, where it may be opened at all."""
        if wish.encrypted:
            return
        if not self._terms.plaintext:
            raise Unmet(
                "this gateway opens encrypted tunnels only, and the request names no encryption: existing SciStream "
                "clients, which know none, need a control server that runs with --plaintext"
            )
        yield "this tunnel is not encrypted: whoever can listen between the gateways can read its data"

    def _judge_rate(self, wish: Wish, warnings: list[str]) -> int:
        """Return the limit to ask of the policy, bytes per second (0: none)."""
        if wish.rate < 0:
            raise UserError(f"rate {wish.rate} is negative: give bytes per second, or 0 for no limit")
        if (
            wish.rate
            and self._terms.accept_any_rate
            and (wish.rate == SCISTREAM_RATE or not self._proxies.supports_rate)
        ):
            warnings.append(f"the rate of {wish.rate} bytes per second is not kept: this gateway limits none")
            return 0
        if wish.rate and not self._proxies.supports_rate:
            raise Unmet(
                f"{self._proxies.name} cannot keep a rate of {wish.rate} bytes per second: ask for rate 0 (no limit), "
                "or let the operator choose --type nginx, which can, or --accept-any-rate, which ignores it"
            )
        return wish.rate

    def _keep_greeting(self, identity: Identity, uid: str, targets: tuple[str, ...]) -> None:
        """Keep a greeting that came before its request; only that will tell which side it is meant for."""
        self._refuse_known(check_uid(uid))
        if len(targets) > MAX_TARGETS or any(len(target) > MAX_TEXT for target in targets):
            raise UserError(f"hello names too much: at most {MAX_TARGETS} listeners, HOST:PORT")
        if len(self._greetings) >= MAX_GREETINGS:
            raise PortsExhausted("too many greetings wait for their requests: request first, then greet")
        self._greetings[_owner(identity), uid] = (time.time(), targets)

    def _greet(self, live: _Live, targets: tuple[Address, ...]) -> None:
        live.session.greet(targets)
        self._save(live)
        live.moved.set()
        self._log(live, "session greeted", targets=_text(targets))

    async def _update(
        self, live: _Live, identity: Identity, wanted: tuple[Address, ...], peer_certificate: str
    ) -> None:
        began = time.perf_counter()
        async with live.lock:
            certificate = _judge_certificate(live.session, peer_certificate)
            allowed = await asyncio.to_thread(self._policy.judge_targets, identity, live.session.role, wanted)
            live.session.open(tuple(allowed), certificate)
            await self._open(live)
        self._observe_setup(live.setup + time.perf_counter() - began)

    async def _open(self, live: _Live) -> None:
        """Start the proxy of a session that has just become streaming; a failure ends the session."""
        session = live.session
        try:
            if session.encrypted:
                write_private(live.folder / _PEER_CERTIFICATE, session.peer_certificate.encode())
            self._store.save(session)  # if this server dies now, the next one finds who the proxy belongs to
            live.proxy = await self._proxies.start(session.kind, self._spec(live), *self._watch(live))
        except (UserError, OSError) as error:
            reason = f"the proxy did not start: {error}"
            await self._end(live, lambda session: session.fail(reason))
            raise Unmet(reason) from error
        self._save(live)
        self._log(live, "session streaming", pairs=" ".join(f"{a}->{b}" for a, b in session.pairs()))

    async def _open_again(self, live: _Live) -> None:
        """Start the proxy of a session that came back without one."""
        live.session.note_restart("the control server was restarted, and its proxy was gone")
        async with live.lock:
            with suppress(Unmet):  # the log and the session say so
                await self._open(live)

    async def _end(self, live: _Live, change: Callable[[Session], None]) -> None:
        """Take a session out, and with it all that it holds: the one way out, by whoever holds its lock."""
        change(live.session)  # first, so that a second one is refused
        live.moved.set()
        self._save(live)  # a server that dies now must not bring it back
        if live.proxy:
            await live.proxy.stop()
        self._ports.give_back(live.session.ports)
        shutil.rmtree(live.folder)
        del self._live[live.session.uid]
        self._sessions.remove(live.session.uid)
        self._store_anyway(lambda: self._store.save(live.session))  # without proxy or certificate, for its uid
        self._log(live, f"session {live.session.state}", reason=live.session.reason)

    async def _expire(self, live: _Live) -> None:
        async with live.lock:
            await self._measure(live)  # a server that was paused has seen nothing of a tunnel in use meanwhile
            reason = live.session.overdue(time.time())
            if reason:
                await self._end(live, lambda session: session.expire(reason))

    async def _abandon(self, live: _Live) -> None:
        """End a session whose client went away while it waited for the answer that names its listeners."""
        async with live.lock:
            if live.session.state in (State.REQUESTED, State.GREETED):
                await self._end(live, lambda session: session.expire("the client went away before it was answered"))

    async def _finish(self, live: _Live, change: Callable[[Session], None]) -> None:
        async with live.lock:
            await self._end(live, change)

    def _begin_anew(self, session: Session) -> None:
        """Give a session all its time again: while no server ran, nobody could greet, use or renew it."""
        session.touch()
        session.renew()
        session.deadline = time.time() + self._terms.request_timeout

    def _take_back(self, session: Session) -> _Live | None:
        """Take in a session of the server that ran here before; None if its ports or keys are not there any more."""
        folder = self._terms.folder / session.uid
        try:
            keys = load_session_keys(folder) if session.encrypted else None
            self._ports.take_exact(session.ports)
        except UserError as error:
            log.get_logger().error("session lost", uid=session.uid, reason=str(error))
            session.fail(str(error))
            return None
        live = _Live(session, folder, keys)
        self._begin_anew(session)
        live.moved.set()
        self._sessions.add(session)
        self._live[session.uid] = live
        return live

    def _remember(self, session: Session) -> None:
        """Refuse the uid of a session that does not come back, as this server does with those that it ended."""
        if session.state.live:
            session.fail("the control server was restarted, and nobody waits for the session any more")
        self._sessions.remember(session)
        self._store_anyway(lambda: self._store.save(session))

    def _forget_old(self) -> None:
        """Let the uids of sessions that ended long ago be used again."""
        for uid in self._sessions.forget_old():
            self._store_anyway(partial(self._store.forget, uid))

    async def _adopt(self, live: _Live, process: ProcessRecord) -> Proxy | None:
        proxy = await self._proxies.adopt(live.session.kind, self._spec(live), process, *self._watch(live))
        if proxy:
            self._log(live, "session restored", pairs=" ".join(f"{a}->{b}" for a, b in live.session.pairs()))
        return proxy

    def _watch(self, live: _Live) -> tuple[OnRestart, OnFailed]:
        """Return what the supervisor is to call when the session's proxy died."""

        def restarted(_count: int, reason: str) -> None:
            live.session.note_restart(reason)
            self._save(live)
            log.get_logger().warning("proxy restarted", uid=live.session.uid, reason=reason)

        def failed(reason: str) -> None:
            self._run_aside(self._finish(live, lambda session: session.fail(reason)))

        return restarted, failed

    def _spec(self, live: _Live) -> ProxySpec:
        session, tls = live.session, None
        if live.keys:
            tls = Tls(
                side="server" if session.role is Role.PROD else "client",
                certificate=live.keys.certificate,
                key=live.keys.key,
                peer_certificate=live.folder / _PEER_CERTIFICATE,
            )
        return ProxySpec(uid=session.uid, folder=live.folder, pairs=session.pairs(), tls=tls, rate=session.rate)

    async def _measure(self, live: _Live) -> None:
        """Learn a tunnel's traffic; one that is in use, or whose proxy doesn't tell, is not idle."""
        traffic = await live.proxy.traffic() if live.proxy else None
        if traffic is None or traffic.connections or traffic != live.traffic:
            live.session.touch()
        live.traffic = traffic or live.traffic

    def _mine(self, identity: Identity, uid: str) -> _Live:
        session = self._sessions.get(uid)
        if session.owner != _owner(identity):
            raise NotYours(f"session {uid} belongs to somebody else")
        return self._live[uid]

    def _refuse_known(self, uid: str) -> None:
        try:
            self._sessions.refuse_known(uid)
        except UserError as error:
            raise AlreadyKnown(str(error)) from error

    def _answer(self, live: _Live, targets: tuple[Address, ...]) -> Answer:
        return Answer(
            listeners=self._advertised(live.session),
            targets=targets,
            certificate=live.keys.pem if live.keys else "",
            lease=self._terms.lease,
            warnings=live.warnings,
            proxy=live.session.kind,
        )

    def _advertised(self, session: Session) -> tuple[Address, ...]:
        return tuple(Address(self._terms.advertise, port) for port in session.ports)

    def _save(self, live: _Live) -> None:
        self._store_anyway(lambda: self._store.save(live.session, live.proxy.record if live.proxy else None))

    @staticmethod
    def _store_anyway(work: Callable[[], None]) -> None:
        """Do without the store where it fails (a full disk): what runs shall run on, and what ends shall end."""
        try:
            work()
        except UserError as error:
            log.get_logger().error("a restarted server will not know this", reason=str(error))

    def _log(self, live: _Live, event: str, **fields: object) -> None:
        session = live.session
        log.get_logger().info(event, uid=session.uid, role=session.role.value, owner=session.owner, **fields)

    def _run(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start work that goes on even if whoever asked for it goes away; `close` waits for it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _run_aside(self, work: Coroutine[Any, Any, None]) -> None:
        """Start work that nobody waits for."""
        self._run(work).add_done_callback(_report)


def _report(task: asyncio.Task[None]) -> None:
    error = None if task.cancelled() else task.exception()
    if isinstance(error, UserError):  # the session was ended by somebody else meanwhile
        log.get_logger().debug("nothing left to do", reason=str(error))
    elif error:
        log.get_logger().error("internal fault: please report this", exc_info=error)


def _owner(identity: Identity) -> str:
    return str(identity)


def _read_role(text: str) -> Role:
    try:
        return Role(text)
    except ValueError:
        raise UserError(f"role {text[:20]!r} is unknown: give PROD (inbound) or CONS (outbound)") from None


def _read_targets(texts: tuple[str, ...]) -> tuple[Address, ...]:
    if not 0 < len(texts) <= MAX_TARGETS:
        raise UserError(f"{len(texts)} addresses are named: give 1 to {MAX_TARGETS}, HOST:PORT each")
    return tuple(parse_address(text[:MAX_TEXT]) for text in texts)


def _judge_certificate(session: Session, pem: str) -> str:
    """Return the other gateway's certificate as it shall be used; none for a tunnel without encryption."""
    if not session.encrypted:
        return ""
    if not pem:
        raise Unmet(
            f"session {session.uid} is encrypted, and update brings no certificate of the other gateway: that gateway "
            "must be one that makes them, or both sides must run with --plaintext"
        )
    return check_peer_certificate(pem)


def _raise_if_ended(session: Session) -> None:
    if session.state is State.EXPIRED:
        raise TimedOut(f"session {session.uid} expired: {session.reason}")
    if not session.state.live:
        raise Interrupted(f"session {session.uid} ended before it was greeted: {session.reason}")


def _text(targets: tuple[Address, ...]) -> str:
    return ",".join(map(str, targets)) or "-"
