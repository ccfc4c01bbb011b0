"""Tunnels of a control server from request to release, with real gRPC, real proxies and real traffic."""

import asyncio
import gc
import os
import time
from pathlib import Path

import pytest

from s2cs import server
from s2cs.proto import scistream_pb2 as pb
from tests.integration.gateways import (
    CONS_HOST,
    PATIENCE,
    PROD_HOST,
    Code,
    Side,
    connect,
    converse,
    echo,
    fresh,
    open_plainly,
    proxies,
    refusal,
    request,
    run,
    serving,
    some_ports,
    until,
)

pytestmark = pytest.mark.needs("haproxy")


def test_a_tunnel_of_scistreams_client_and_its_habits(tmp_path: Path) -> None:
    """Its requests wait for a hello from another thread, its hello is always the producer's, its rate always 10000."""

    async def work() -> None:
        terms = {"plaintext": True, "accept_any_rate": True}
        async with serving(tmp_path, **terms) as prod, serving(tmp_path, CONS_HOST, **terms) as cons, echo() as service:
            uid = fresh()
            waiting = asyncio.ensure_future(prod.req(pb.Request(uid=uid, role="PROD", num_conn=2, rate=10000)))
            await until(lambda: prod.server.gateway.counts()["requested"] == 1)
            greeted = await prod.hello(pb.Hello(uid=uid, role="PROD", prod_listeners=[service]))
            inner = await waiting
            assert list(inner.prod_listeners) == [service]
            assert list(greeted.listeners) == list(inner.listeners)
            first, second = (int(listener.rpartition(":")[2]) for listener in inner.listeners)
            assert second == first + 1
            await prod.update(pb.UpdateTargets(uid=uid, remote_listeners=inner.prod_listeners, role="PROD"))

            waiting = asyncio.ensure_future(cons.req(pb.Request(uid=uid, role="CONS", num_conn=2, rate=10000)))
            await until(lambda: cons.server.gateway.counts()["requested"] == 1)
            meaningless = [f"127.0.0.1:{port}" for port in (5074, 5075, 5076, 37000, 47000)] + ["rubbish"]
            await cons.hello(pb.Hello(uid=uid, role="PROD", prod_listeners=meaningless))
            outer = await waiting
            assert any("not encrypted" in warning for warning in outer.warnings)
            answer = await cons.update(pb.UpdateTargets(uid=uid, remote_listeners=inner.listeners, role="CONS"))
            assert list(answer.prod_listeners) == list(inner.listeners)
            for listener in outer.listeners:
                assert await converse(listener, b"hello\n") == b"hello\n"
            for side in (prod, cons):
                await side.release(pb.Release(uid=uid))
        assert proxies(tmp_path) == []

    run(work())


@pytest.mark.parametrize("order", ["greeted", "request first", "hello first"])
def test_a_request_and_its_greeting_come_in_any_order(tmp_path: Path, order: str) -> None:
    async def work() -> None:
        async with serving(tmp_path) as prod:
            uid, targets = fresh(), ["127.0.0.1:5560", "127.0.0.1:5561"]
            hello = pb.Hello(uid=uid, role="PROD", prod_listeners=targets)
            if order == "greeted":
                answer = await prod.req(request(uid, greeted=True, targets=targets))
            elif order == "hello first":
                assert list((await prod.hello(hello)).listeners) == []
                answer = await prod.req(request(uid))
            else:
                waiting = asyncio.ensure_future(prod.req(request(uid)))
                await until(lambda: prod.server.gateway.counts()["requested"] == 1)
                await prod.hello(hello)
                answer = await waiting
            assert list(answer.prod_listeners) == targets
            assert answer.certificate.startswith("-----BEGIN CERTIFICATE-----")
            assert answer.proxy == "haproxy"
            again = await prod.hello(hello)
            assert list(again.listeners) == list(answer.listeners)
            assert (await prod.state(uid)).state == "greeted"

    run(work())


def test_targets_repeat_in_turn(tmp_path: Path) -> None:
    async def work() -> None:
        async with serving(tmp_path) as prod, serving(tmp_path, CONS_HOST) as cons, echo(b"a ") as a, echo(b"b ") as b:
            uid, listeners = await connect(prod, cons, [a, b], num_conn=3)
            answers = [await converse(listener, b"x\n") for listener in listeners]
            assert answers == [b"a x\n", b"b x\n", b"a x\n"]
            assert (await cons.state(uid)).encrypted

    run(work())


def test_fifty_at_once_each_with_its_own_data(tmp_path: Path) -> None:
    async def one(prod: Side, cons: Side, number: int) -> None:
        async with echo(b"%d " % number) as service:
            uid, (listener,) = await connect(prod, cons, [service])
            assert await converse(listener, b"of %d\n" % number) == b"%d of %d\n" % (number, number)
            await asyncio.gather(prod.release(pb.Release(uid=uid)), cons.release(pb.Release(uid=uid)))

    async def work() -> None:
        async with serving(tmp_path) as prod, serving(tmp_path, CONS_HOST) as cons:
            await asyncio.gather(*(one(prod, cons, number) for number in range(50)))
            for side in (prod, cons):
                assert side.server.gateway.free_ports == 200
                assert side.server.gateway.counts()["released"] == 50
        assert proxies(tmp_path) == []
        assert [*tmp_path.glob("*/sessions/*")] == []

    run(work())


def threads() -> int:
    return len([*Path("/proc/self/task").iterdir()])


def open_files() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


def memory() -> int:
    """Resident bytes that are this process's own."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_hundreds_in_a_row_leave_nothing(tmp_path: Path) -> None:
    """Every tenth with its proxy, which takes most of the time."""

    async def one(prod: Side, number: int) -> None:
        uid = fresh()
        await prod.req(request(uid, encrypted=False, greeted=True, targets=["127.0.0.1:9"]))
        if number % 10 == 0:
            await prod.update(pb.UpdateTargets(uid=uid, role="PROD", remote_listeners=["127.0.0.1:9"]))
        await prod.release(pb.Release(uid=uid))

    async def work() -> None:
        async with serving(tmp_path, plaintext=True, port_range=some_ports(5)) as prod:
            for number in range(100):
                await one(prod, number)
            gc.collect()
            before = memory(), threads(), open_files()
            for number in range(400):
                await one(prod, number)
            gc.collect()
            grown = [now - then for now, then in zip((memory(), threads(), open_files()), before, strict=True)]
            assert grown[0] < 4 << 20
            assert grown[1] < 10  # the pools of asyncio and gRPC breathe
            assert grown[2] < 10
            assert prod.server.gateway.free_ports == 5
            assert [*(tmp_path / PROD_HOST / "sessions").iterdir()] == []
        assert proxies(tmp_path) == []

    run(work())


def test_a_client_that_goes_away_leaves_nothing(tmp_path: Path) -> None:
    async def work() -> None:
        async with serving(tmp_path, port_range=some_ports(5)) as prod:
            uid = fresh()
            waiting = asyncio.ensure_future(prod.req(request(uid, num_conn=5)))
            await until(lambda: prod.server.gateway.free_ports == 0)
            waiting.cancel()
            await until(lambda: prod.server.gateway.free_ports == 5)
            assert prod.server.gateway.counts()["expired"] == 1
            assert [*(tmp_path / PROD_HOST / "sessions").iterdir()] == []

    run(work())


def test_a_request_that_nobody_greets_ends(tmp_path: Path) -> None:
    async def work() -> None:
        async with serving(tmp_path, request_timeout=0.2) as side:
            code, text = await refusal(side.req(request(fresh())))
            assert code is Code.DEADLINE_EXCEEDED
            assert "no hello came within" in text

    run(work())


def test_a_tunnel_that_nobody_renews_any_more_ends(tmp_path: Path) -> None:
    """And one that nobody has ever renewed has no lease, however late one looks."""

    async def work() -> None:
        async with serving(tmp_path, plaintext=True, lease=0.4) as side:
            (renewed, _), (forgotten, _) = [await open_plainly(side, "127.0.0.1:9") for _ in range(2)]
            assert (await side.renew(pb.RenewRequest(uid=renewed))).lease_seconds == pytest.approx(0.4)
            await until(lambda: side.server.gateway.free_ports == 199)
            code, text = await refusal(side.renew(pb.RenewRequest(uid=renewed)))
            assert code is Code.NOT_FOUND
            assert "expired, its lease of 0 s was not renewed" in text
            assert (await side.state(forgotten)).state == "streaming"
        assert proxies(tmp_path) == []

    run(work())


@pytest.mark.parametrize("stood_still", [True, False])
def test_a_server_that_stood_still_gives_everybody_time_to_renew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stood_still: bool
) -> None:
    """As a machine does that is moved, or sleeps, or whose clock is set."""
    monkeypatch.setattr(server, "TRAFFIC", 1000.0)  # the watch does nothing but sleep
    monkeypatch.setattr(server, "STOOD_STILL", 0.5 if stood_still else 1000.0)

    async def work() -> None:
        async with serving(tmp_path, plaintext=True, lease=60, idle=0) as side:
            gateway = side.server.gateway
            uid, _ = await open_plainly(side, "127.0.0.1:9")
            await side.renew(pb.RenewRequest(uid=uid))
            gateway._live[uid].session.lease_until -= 1000
            time.sleep(1.5)  # nothing in this process goes on meanwhile, nor does the server
            if stood_still:
                await until(lambda: gateway._live[uid].session.lease_until > time.time() + 30)
                assert (await side.state(uid)).state == "streaming"
            else:
                await until(lambda: gateway.free_ports == 200)

    run(work())


def test_a_tunnel_that_nobody_uses_ends(tmp_path: Path) -> None:
    async def work() -> None:
        async with serving(tmp_path, plaintext=True, idle=1) as side:
            uid, _ = await open_plainly(side, "127.0.0.1:9")
            await until(lambda: side.server.gateway.free_ports == 200)
            code, text = await refusal(side.release(pb.Release(uid=uid)))
            assert code is Code.NOT_FOUND
            assert "expired, no data for 1 s" in text
        assert proxies(tmp_path) == []

    run(work())


def test_a_tunnel_in_use_is_not_idle(tmp_path: Path) -> None:
    """Not even where the server itself was paused, and has seen nothing of it for longer than the idle time."""

    async def work() -> None:
        async with serving(tmp_path, plaintext=True, idle=60) as side, echo() as service:
            uid, listener = await open_plainly(side, service)
            host, port = listener.split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            async with asyncio.timeout(PATIENCE):
                while not (await side.state(uid)).connections:
                    await asyncio.sleep(0.01)
            side.server.gateway._live[uid].session.last_activity -= 100
            await side.server.gateway.sweep()
            assert (await side.state(uid)).state == "streaming"
            writer.write(b"still there\n")
            assert await reader.readline() == b"still there\n"
            assert (await side.state(uid)).connections == 1
            writer.close()
            await writer.wait_closed()
            async with asyncio.timeout(PATIENCE):
                while (await side.state(uid)).connections:
                    await asyncio.sleep(0.01)
            state = await side.state(uid)
            assert (state.bytes_in, state.bytes_out) == (12, 12)

    run(work())


def test_metrics_tell_sessions_traffic_and_setup(tmp_path: Path) -> None:
    async def work() -> None:
        async with serving(tmp_path, plaintext=True, metrics_port=0) as side, echo() as service:
            uid, listener = await open_plainly(side, service)
            await converse(listener, b"0123456789\n")
            await side.req(request(fresh(), greeted=True, targets=[service]))

            async def scrape(path: bytes = b"/metrics") -> str:
                reader, writer = await asyncio.open_connection("127.0.0.1", side.server.metrics_port)
                writer.write(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path)
                answer = await reader.read()
                writer.close()
                await writer.wait_closed()
                return answer.decode()

            async with asyncio.timeout(PATIENCE):
                labels = f'{{role="PROD",uid="{uid}"}}'
                while f"s2cs_session_received_bytes_total{labels} 11.0" not in (text := await scrape()):
                    await asyncio.sleep(0.01)
            assert text.startswith("HTTP/1.1 200 OK\r\n")
            assert 's2cs_sessions{state="streaming"} 1.0' in text
            assert 's2cs_sessions{state="greeted"} 1.0' in text
            assert f"s2cs_session_connections{labels} " in text
            assert "s2cs_setup_seconds_count 1.0" in text
            assert "s2cs_free_ports 198.0" in text
            assert (await scrape(b"/")).startswith("HTTP/1.1 404 ")

    run(work())
