"""The life of a control server: killed, ended, drained, and its proxies with it."""

import asyncio
import os
import signal
import sqlite3
import time
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ministream.base.errors import UserError
from s2cs.dataservers import proc
from s2cs.proto import scistream_pb2 as pb
from s2cs.server import ControlServer
from tests.integration.gateways import (
    PATIENCE,
    PROD_HOST,
    Code,
    converse,
    echo,
    fresh,
    open_plainly,
    options,
    process,
    proxies,
    refusal,
    request,
    run,
    serving,
    some_ports,
    until,
)

pytestmark = pytest.mark.needs("haproxy")


def test_a_killed_server_comes_back_with_its_sessions(tmp_path: Path) -> None:
    """One tunnel is in use all the time, one lost its proxy meanwhile, and one its session."""

    async def work() -> None:
        words = ("--port", "0", "--port-range", some_ports(50))
        state = tmp_path / "state"
        async with echo() as service:
            async with process(tmp_path, *words) as (first, side):
                used, bereft, forgotten = [await open_plainly(side, service) for _ in range(3)]
                waiting = asyncio.ensure_future(side.req(request(fresh(), encrypted=False)))
                greeted = fresh()
                await side.req(request(greeted, encrypted=False, greeted=True, targets=[service]))
                host, port = used[1].split(":")
                reader, writer = await asyncio.open_connection(host, int(port))
                await first.end(signal.SIGKILL)
                assert (await refusal(waiting))[0] is Code.UNAVAILABLE
            before = proxies(tmp_path)
            assert len(before) == 3
            kept = {pid for pid, log in proc.members(tmp_path).items() if used[0] in str(log)}
            lost = next(pid for pid, log in proc.members(tmp_path).items() if bereft[0] in str(log))
            os.kill(lost, signal.SIGKILL)
            await until(lambda: not proc.started(lost))
            with sqlite3.connect(state / "sessions.db") as database:
                database.execute("DELETE FROM sessions WHERE uid = ?", (forgotten[0],))
            database.close()

            async with process(tmp_path, *words) as (second, side):
                writer.write(b"not cut\n")
                assert await reader.readline() == b"not cut\n"
                found = {s.uid: s for s in (await side.list(pb.ListRequest())).sessions}
                assert set(found) == {used[0], bereft[0], greeted}
                assert list(found[used[0]].listeners) == [used[1]]
                assert (found[used[0]].restarts, found[used[0]].connections) == (0, 1)
                assert (found[bereft[0]].restarts, "gone" in found[bereft[0]].reason) == (1, True)
                assert await converse(bereft[1], b"again\n") == b"again\n"
                with pytest.raises(ConnectionRefusedError):
                    await converse(forgotten[1], b"x\n")
                await side.update(pb.UpdateTargets(uid=greeted, remote_listeners=[service]))
                assert kept < set(proxies(tmp_path))
                writer.close()
                await writer.wait_closed()
                for uid in found:
                    await side.release(pb.Release(uid=uid))
                assert proxies(tmp_path) == []
                assert [*(state / "sessions").iterdir()] == []
                assert await second.end(signal.SIGTERM) == 0

    run(work())


def test_sigterm_waits_for_the_live_tunnels(tmp_path: Path) -> None:
    async def work() -> None:
        words = ("--port", "0", "--port-range", some_ports(50), "--metrics-port", "0")
        async with echo() as service, process(tmp_path, *words) as (child, side):
            health = health_pb2_grpc.HealthStub(side.channel)
            check = health_pb2.HealthCheckRequest(service="scistream.Control")
            assert (await health.Check(check)).status == health_pb2.HealthCheckResponse.SERVING
            uid, listener = await open_plainly(side, service)
            waiting = asyncio.ensure_future(side.req(request(fresh(), encrypted=False)))
            await asyncio.sleep(0)
            ending = asyncio.ensure_future(child.end(signal.SIGTERM))
            code, _ = await refusal(waiting)
            assert code in (Code.ABORTED, Code.UNAVAILABLE)
            code, text = await refusal(side.req(request(fresh(), encrypted=False)))
            assert (code, "being ended" in text) == (Code.UNAVAILABLE, True)
            assert (await health.Check(check)).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert await converse(listener, b"still\n") == b"still\n"
            assert not ending.done()
            await side.release(pb.Release(uid=uid))
            assert await ending == 0
            assert child.events[-1]["event"] == "ended"
            assert proxies(tmp_path) == []

    run(work())


def test_an_impatient_end_leaves_nothing_either(tmp_path: Path) -> None:
    async def work() -> None:
        words = ("--port", "0", "--port-range", some_ports(50))
        async with echo() as service, process(tmp_path, *words) as (child, side):
            await open_plainly(side, service)
            assert await child.end(signal.SIGINT) == 0
            assert proxies(tmp_path) == []
            assert not any("fault" in event["event"] for event in child.events)

    run(work())


def test_a_second_server_on_the_same_state_or_port_is_refused(tmp_path: Path) -> None:
    async def work() -> None:
        async with serving(tmp_path) as side:
            with pytest.raises(UserError, match="another control server uses it"):
                await ControlServer(options(tmp_path)).__aenter__()
            taken = options(tmp_path / "other", port=side.server.port)
            with pytest.raises(UserError, match="free --port"):
                await ControlServer(taken).__aenter__()

    run(work())


def test_a_proxy_that_dies_is_back_and_the_session_says_so(tmp_path: Path) -> None:
    async def work() -> None:
        async with serving(tmp_path, plaintext=True) as side, echo() as service:
            uid, listener = await open_plainly(side, service)
            (pid,) = proxies(tmp_path)
            os.kill(pid, signal.SIGKILL)
            died = time.monotonic()
            async with asyncio.timeout(PATIENCE):
                while not (await side.state(uid)).restarts:
                    await asyncio.sleep(0.01)
            assert time.monotonic() - died < 10  # 0.1 s, unless somebody has to wait for a processor
            assert "SIGKILL" in (await side.state(uid)).reason
            assert await converse(listener, b"back\n") == b"back\n"

    run(work())


def test_a_proxy_that_cannot_start_says_why_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with serving(tmp_path, plaintext=True) as side:
            monkeypatch.setattr("shutil.which", lambda *_args, **_keywords: None)
            code, text = await refusal(open_plainly(side, "127.0.0.1:9"))
            assert (code, "apt install haproxy" in text) == (Code.FAILED_PRECONDITION, True)
            assert side.server.gateway.free_ports == 200
            assert side.server.gateway.counts()["failed"] == 1
            assert [*(tmp_path / PROD_HOST / "sessions").iterdir()] == []

    run(work())
