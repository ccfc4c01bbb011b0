"""What a gateway remembers of the sessions that ended, and for how long: across restarts, and on disk."""

import asyncio
import json
import sqlite3
import time
from collections.abc import Coroutine, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from s2cs.auth import Identity
from s2cs.dataservers.supervisor import Proxies
from s2cs.gateway import Gateway
from s2cs.policy import default_policy
from s2cs.ports import PortPool
from s2cs.sessions import REPLAY_MEMORY, Sessions, State
from s2cs.store import ProcessRecord, SessionStore
from s2cs.terms import AlreadyKnown, Terms, Wish

ALICE = Identity("alice", "local")
HOST = "127.0.0.1"


class Later:
    """A clock that is some seconds ahead."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def __call__(self) -> float:
        return time.time() + self.seconds


@contextmanager
def gateway(state: Path, clock: Later) -> Iterator[Gateway]:
    """A gateway on this state folder; whoever leaves the block has killed it."""
    (state / "sessions").mkdir(mode=0o700, parents=True, exist_ok=True)
    state.chmod(0o700)
    terms = Terms(
        folder=state / "sessions",
        host=HOST,
        advertise=HOST,
        plaintext=True,
        accept_any_rate=False,
        request_timeout=60,
        lease=0,
        idle=0,
    )
    with SessionStore(state / "sessions.db") as store:
        yield Gateway(
            terms,
            sessions=Sessions(clock),
            ports=PortPool(range(21_000, 21_100), HOST),
            store=store,
            policy=default_policy(f"{HOST}:9", ()),
            proxies=Proxies("haproxy", terms.folder),
        )


def wish(uid: str, **changes: Any) -> Wish:
    usual = {"role": "PROD", "num_conn": 1, "rate": 0, "encrypted": True, "greeted": True, "targets": (f"{HOST}:9",)}
    return Wish(uid=uid, **(usual | changes))


async def begin_and_release(server: Gateway, uid: str) -> None:
    await server.request(ALICE, wish(uid))
    await server.release(ALICE, uid)


def rows(state: Path) -> dict[str, dict[str, Any]]:
    with closing(sqlite3.connect(state / "sessions.db")) as database:
        return {uid: json.loads(session) for uid, session in database.execute("SELECT uid, session FROM sessions")}


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 20))


def test_a_uid_is_refused_after_a_restart_for_as_long_as_before_it(tmp_path: Path) -> None:
    async def work() -> None:
        with gateway(tmp_path, Later()) as first:
            await begin_and_release(first, "scan")
        young = Later(REPLAY_MEMORY - 60)
        with gateway(tmp_path, young) as second:
            await second.restore()
            with pytest.raises(AlreadyKnown, match=r"uid scan is known already .*released"):
                await second.request(ALICE, wish("scan"))
            with pytest.raises(AlreadyKnown, match="scan"):
                second.hello(ALICE, "scan", "PROD", (f"{HOST}:9",))
            assert second.counts()[State.RELEASED] == 1
            young.seconds += 61
            await second.sweep()
            await begin_and_release(second, "scan")

    run(work())


def test_what_ended_long_ago_is_forgotten_at_the_start_and_as_time_passes(tmp_path: Path) -> None:
    async def work() -> None:
        with gateway(tmp_path, Later()) as first:
            for number in range(3):
                await begin_and_release(first, f"scan-{number}")
        assert len(rows(tmp_path)) == 3
        old = Later(REPLAY_MEMORY + 1)
        with gateway(tmp_path, old) as second:
            await second.restore()
            assert not any(second.counts().values())
        assert rows(tmp_path) == {}
        with gateway(tmp_path, now := Later()) as third:
            for number in range(3):
                await begin_and_release(third, f"scan-{number}")
            now.seconds = REPLAY_MEMORY + 1
            await third.sweep()
        assert rows(tmp_path) == {}

    run(work())


def test_a_session_that_waited_when_its_server_was_killed_is_over_and_its_uid_is_refused(tmp_path: Path) -> None:
    async def work() -> None:
        with gateway(tmp_path, Later()) as first:
            waiting = asyncio.ensure_future(first.request(ALICE, wish("scan", greeted=False)))
            while not first.counts()[State.REQUESTED]:
                await asyncio.sleep(0)
        with gateway(tmp_path, Later()) as second:
            await second.restore()
            with pytest.raises(AlreadyKnown, match=r"uid scan is known already .*failed"):
                await second.request(ALICE, wish("scan"))
            assert second.at_rest
        assert list((tmp_path / "sessions").iterdir()) == []
        waiting.cancel()

    run(work())


@pytest.mark.parametrize("killed", [False, True], ids=["ended in peace", "killed while it ended one"])
def test_no_certificate_and_no_key_of_an_ended_session_stays(tmp_path: Path, killed: bool) -> None:
    async def work() -> None:
        with gateway(tmp_path, Later()) as first:
            await begin_and_release(first, "scan")
        if killed:
            with SessionStore(tmp_path / "sessions.db") as store:
                [(session, _)] = store.load()
                session.peer_certificate = "-----BEGIN CERTIFICATE-----"
                store.save(session, ProcessRecord(pid=1, started=1))
            (tmp_path / "sessions" / "scan").mkdir()
            (tmp_path / "sessions" / "scan" / "session.key").write_text("-----BEGIN EC PRIVATE KEY-----")
        with gateway(tmp_path, Later()) as second:
            await second.restore()
        assert rows(tmp_path)["scan"]["state"] == "released"
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert not any(b"-----BEGIN" in path.read_bytes() for path in files)

    run(work())
