"""The control server, with real gRPC, real proxies and real traffic."""

import asyncio
import contextlib
import gc
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ministream.base.errors import UserError
from s2cs.auth import Identity
from s2cs.auth.tokens import TokenFile
from s2cs.dataservers import proc
from s2cs.proto import scistream_pb2 as pb
from s2cs.proto import scistream_pb2_grpc as rpc
from s2cs.server import ControlServer
from s2cs.settings import ServerSettings
from s2cs.site import init_site

pytestmark = pytest.mark.needs("haproxy")

ANYWHERE = "127.0.0.0/8:1-65535"
PATIENCE = 20.0
PROD_HOST, CONS_HOST = "127.0.0.2", "127.0.0.3"
Code = grpc.StatusCode


def some_ports(count: int) -> str:
    """A range below the ports that the kernel gives to clients; the pool passes over those in use."""
    first = random.randrange(20000, 32000 - count)
    return f"{first}-{first + count - 1}"


class Side:
    """A gateway in this process, and a client of it."""

    def __init__(self, server: ControlServer, channel: grpc.aio.Channel) -> None:
        self.server, self.channel = server, channel
        control, gateway = rpc.ControlStub(channel), rpc.GatewayStub(channel)
        self.req, self.hello, self.update, self.release = control.req, control.hello, control.update, control.release
        self.list, self.renew = gateway.list, gateway.renew

    async def state(self, uid: str, **call: Any) -> pb.SessionState:
        (found,) = (await self.list(pb.ListRequest(uid=uid), **call)).sessions
        return found


def options(folder: Path, host: str = PROD_HOST, **changes: Any) -> ServerSettings:
    usual: dict[str, Any] = {
        "listener_ip": host,
        "port": 0,
        "port_range": some_ports(200),
        "type": "haproxy",
        "state_dir": str(folder / host),
        "insecure_no_auth": True,
        "ssl": False,
        "allow": ANYWHERE,
    }
    return ServerSettings.model_validate(usual | changes)


@contextlib.asynccontextmanager
async def serving(folder: Path, host: str = PROD_HOST, **changes: Any) -> AsyncIterator[Side]:
    async with (
        ControlServer(options(folder, host, **changes)) as server,
        grpc.aio.insecure_channel(f"{host}:{server.port}") as channel,
    ):
        yield Side(server, channel)


@contextlib.asynccontextmanager
async def echo(prefix: bytes = b"") -> AsyncIterator[str]:
    """A service that answers each line with `prefix` and the line."""
    handlers = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.add(asyncio.current_task())
        try:
            while line := await reader.readline():
                writer.write(prefix + line)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for handler in handlers:
            handler.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)


async def converse(listener: str, line: bytes) -> bytes:
    host, port = listener.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(line)
    answer = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return answer


async def connect(
    prod: Side, cons: Side, targets: list[str], num_conn: int = 1, uid: str = ""
) -> tuple[str, list[str]]:
    """Open a tunnel as our client does; return uid and listeners."""
    uid = uid or fresh()
    inner, outer = await asyncio.gather(
        prod.req(pb.Request(uid=uid, role="PROD", num_conn=num_conn, encrypted=True, greeted=True, targets=targets)),
        cons.req(pb.Request(uid=uid, role="CONS", num_conn=num_conn, encrypted=True, greeted=True)),
    )
    await asyncio.gather(
        prod.update(
            pb.UpdateTargets(uid=uid, role="PROD", remote_listeners=targets, peer_certificate=outer.certificate)
        ),
        cons.update(
            pb.UpdateTargets(uid=uid, role="CONS", remote_listeners=inner.listeners, peer_certificate=inner.certificate)
        ),
    )
    return uid, list(outer.listeners)


def fresh() -> str:
    return str(uuid.uuid4())


async def refusal(call: Any) -> tuple[Code, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)


def proxies(folder: Path) -> list[int]:
    """The processes whose output goes to a file below this folder."""
    return [*proc.members(folder)]


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 100))


def request(uid: str, role: str = "PROD", **fields: Any) -> pb.Request:
    return pb.Request(**({"uid": uid, "role": role, "num_conn": 1, "encrypted": True} | fields))


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
        assert (
            not any((tmp_path / host / "sessions").iterdir() for host in (PROD_HOST, CONS_HOST))
            or [*(tmp_path / PROD_HOST / "sessions").iterdir()]
            == [*(tmp_path / CONS_HOST / "sessions").iterdir()]
            == []
        )

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


def test_times_that_pass(tmp_path: Path) -> None:
    """A request that nobody greets, an opened tunnel that nobody renews any more, one that nobody uses."""

    async def opened(side: Side) -> str:
        uid = fresh()
        await side.req(request(uid, encrypted=False, greeted=True, targets=["127.0.0.1:9"]))
        await side.update(pb.UpdateTargets(uid=uid, role="PROD", remote_listeners=["127.0.0.1:9"]))
        return uid

    async def work() -> None:
        terms = {"plaintext": True, "request_timeout": 0.2, "lease": 0.4, "idle": 2}
        async with serving(tmp_path, **terms) as side:
            renewed, forgotten = await opened(side), await opened(side)
            assert (await side.renew(pb.RenewRequest(uid=renewed))).lease_seconds == pytest.approx(0.4)
            code, text = await refusal(side.req(request(fresh())))
            assert code is Code.DEADLINE_EXCEEDED
            assert "no hello came within" in text
            await until(lambda: side.server.gateway.free_ports == 199)
            code, text = await refusal(side.renew(pb.RenewRequest(uid=renewed)))
            assert code is Code.NOT_FOUND
            assert "expired, its lease of 0 s was not renewed" in text
            assert (await side.state(forgotten)).state == "streaming"
            await until(lambda: side.server.gateway.free_ports == 200)
            code, text = await refusal(side.release(pb.Release(uid=forgotten)))
            assert "no data for 2 s" in text
        assert proxies(tmp_path) == []

    run(work())


def test_a_tunnel_in_use_is_not_idle(tmp_path: Path) -> None:
    async def work() -> None:
        terms = {"plaintext": True, "idle": 0.6}
        async with serving(tmp_path, **terms) as side, echo() as service:
            uid = fresh()
            answer = await side.req(request(uid, encrypted=False, greeted=True, targets=[service]))
            await side.update(pb.UpdateTargets(uid=uid, role="PROD", remote_listeners=[service]))
            host, port = answer.listeners[0].split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            silent_until = time.monotonic() + 2
            while time.monotonic() < silent_until:
                assert (await side.state(uid)).state == "streaming"
                await asyncio.sleep(0.1)
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


def test_refusals_each_with_code_and_sentence(tmp_path: Path) -> None:
    async def work() -> None:
        async with serving(tmp_path, port_range=some_ports(4), allow="127.0.0.1/32:5000-6000") as side:
            good = {"greeted": True, "targets": ["127.0.0.1:5560"]}
            uid = fresh()
            certificate = (await side.req(request(uid, **good))).certificate
            update = pb.UpdateTargets(uid=uid, role="PROD", remote_listeners=["127.0.0.1:5560"])
            refused: list[tuple[Any, Code, str]] = [
                (side.req(request(uid, **good)), Code.ALREADY_EXISTS, "known already"),
                (side.req(request(fresh(), encrypted=False, **good)), Code.FAILED_PRECONDITION, "--plaintext"),
                (side.req(request(fresh(), rate=10000, **good)), Code.FAILED_PRECONDITION, "--accept-any-rate"),
                (side.req(request(fresh(), num_conn=4, **good)), Code.RESOURCE_EXHAUSTED, "sessions leave 3 of 4"),
                (side.req(request(fresh(), num_conn=0, **good)), Code.INVALID_ARGUMENT, "num_conn"),
                (side.req(request(fresh(), num_conn=-(2**31), **good)), Code.INVALID_ARGUMENT, "num_conn"),
                (side.req(request(fresh(), rate=-1, **good)), Code.INVALID_ARGUMENT, "rate"),
                (side.req(request("../../etc", **good)), Code.INVALID_ARGUMENT, "uid"),
                (side.req(request("", **good)), Code.INVALID_ARGUMENT, "uid"),
                (side.req(request("u" * 65, **good)), Code.INVALID_ARGUMENT, "uid"),
                (side.req(request(fresh(), "BOTH", **good)), Code.INVALID_ARGUMENT, "role"),
                (side.req(request(fresh(), greeted=True)), Code.INVALID_ARGUMENT, "addresses"),
                (side.req(request(fresh(), greeted=True, targets=["x"])), Code.INVALID_ARGUMENT, "HOST:PORT"),
                (side.update(pb.UpdateTargets(uid=fresh(), role="PROD")), Code.NOT_FOUND, "no session"),
                (side.update(pb.UpdateTargets(uid=uid, role="CONS")), Code.INVALID_ARGUMENT, "PROD"),
                (side.update(pb.UpdateTargets(uid=uid)), Code.INVALID_ARGUMENT, "addresses"),
                (side.update(update), Code.FAILED_PRECONDITION, "no certificate"),
                (side.release(pb.Release(uid=fresh())), Code.NOT_FOUND, "no session"),
                (side.renew(pb.RenewRequest(uid=fresh())), Code.NOT_FOUND, "no session"),
                (side.list(pb.ListRequest(uid=fresh())), Code.NOT_FOUND, "no session"),
                (side.hello(pb.Hello(uid="a b", role="PROD")), Code.INVALID_ARGUMENT, "uid"),
                (side.hello(pb.Hello(uid=fresh(), role="")), Code.INVALID_ARGUMENT, "role"),
            ]
            for address in ("10.1.2.3:5560", "127.0.0.1:22", "0.0.0.0:5560", "169.254.169.254:5560", "[::1]:5560"):
                wrong = pb.UpdateTargets(uid=uid, remote_listeners=[address], peer_certificate=certificate)
                refused.append((side.update(wrong), Code.PERMISSION_DENIED, address))
            for call, code, words in refused:
                found, text = await refusal(call)
                assert (found, words in text) == (code, True), text
            update.peer_certificate = "-----BEGIN CERTIFICATE-----\nrubbish\n-----END CERTIFICATE-----\n"
            assert (await refusal(side.update(update)))[0] is Code.INVALID_ARGUMENT
            update.peer_certificate = certificate
            await side.update(update)  # none of the refusals did any harm
            assert await refusal(side.update(update)) == (
                Code.FAILED_PRECONDITION,
                f"session {uid} is streaming and cannot become streaming again; release it and request a new session",
            )
            await side.release(pb.Release(uid=uid))
            code, text = await refusal(side.req(request(uid, **good)))
            assert (code, "released" in text) == (Code.ALREADY_EXISTS, True)
            assert side.server.gateway.free_ports == 4

    run(work())


def test_who_is_not_known_or_not_the_owner_gets_nothing(tmp_path: Path) -> None:
    now = time.time()
    site, first = init_site(tmp_path / "site", ["localhost"])
    tokens = TokenFile(site.tokens)
    second = tokens.add("berta", 60)
    late = TokenFile(site.tokens, clock=lambda: now - 100).add("carl", 50)
    secured = {
        "insecure_no_auth": False,
        "ssl": True,
        "server_crt": str(site.certificate),
        "server_key": str(site.key),
        "tokens": str(site.tokens),
    }

    async def work() -> None:
        async with ControlServer(options(tmp_path, **secured)) as server:
            trust = grpc.ssl_channel_credentials(site.ca.read_bytes())
            override = (("grpc.ssl_target_name_override", "localhost"),)
            async with grpc.aio.secure_channel(f"{PROD_HOST}:{server.port}", trust, override) as channel:
                side, uid = Side(server, channel), fresh()
                calls: dict[str, tuple[Any, Any]] = {
                    "req": (side.req, request(uid, greeted=True, targets=["127.0.0.1:9"])),
                    "hello": (side.hello, pb.Hello(uid=uid, role="PROD", prod_listeners=["127.0.0.1:9"])),
                    "update": (side.update, pb.UpdateTargets(uid=uid, remote_listeners=["127.0.0.1:9"])),
                    "renew": (side.renew, pb.RenewRequest(uid=uid)),
                    "list": (side.list, pb.ListRequest(uid=uid)),
                    "release": (side.release, pb.Release(uid=uid)),
                }
                unknown = {"": "no token", "INVALID_TOKEN": "not logged in", late: "expired", "s2cs_x": "unknown"}
                for token, words in unknown.items():
                    for method, message in calls.values():
                        code, text = await refusal(method(message, metadata=[("authorization", token)]))
                        assert (code, words in text) == (Code.UNAUTHENTICATED, True), text
                        assert not token or token == "INVALID_TOKEN" or token not in text
                mine, other = [("authorization", first)], [("authorization", f"Bearer {second}")]
                await side.req(calls["req"][1], metadata=mine)
                for name in ("hello", "update", "renew", "list", "release"):
                    method, message = calls[name]
                    code, text = await refusal(method(message, metadata=other))
                    assert (code, text) == (Code.PERMISSION_DENIED, f"session {uid} belongs to somebody else")
                assert (await refusal(side.req(calls["req"][1], metadata=other)))[0] is Code.ALREADY_EXISTS
                assert len((await side.list(pb.ListRequest(), metadata=other)).sessions) == 0
                assert len((await side.list(pb.ListRequest(), metadata=mine)).sessions) == 1
                await side.release(calls["release"][1], metadata=mine)

    run(work())


def test_a_stranger_cannot_greet_for_somebody_else(tmp_path: Path) -> None:
    """A greeting that comes first counts only for the request of the same person."""

    async def work() -> None:
        async with serving(tmp_path) as side:
            uid = fresh()
            gateway = side.server.gateway
            gateway.hello(Identity("berta", "local"), uid, "PROD", ("10.0.0.1:1",))
            waiting = asyncio.ensure_future(side.req(request(uid)))
            await until(lambda: gateway.counts()["requested"] == 1)
            await side.hello(pb.Hello(uid=uid, role="PROD", prod_listeners=["127.0.0.1:9"]))
            assert list((await waiting).prod_listeners) == ["127.0.0.1:9"]

    run(work())


class Process:
    """A control server in a process of its own, by the command's words."""

    def __init__(self, folder: Path, *words: str) -> None:
        command = [sys.executable, "-c", "from s2cs.main import main; main()", *words]
        command += ["--log-format", "json", "--state-dir", str(folder / "state"), "--allow", ANYWHERE]
        command += ["--listener-ip", PROD_HOST, "--insecure-no-auth", "--no-ssl", "--plaintext", "--drain", "20"]
        self._child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder)
        self.events: list[dict[str, Any]] = []

    async def wait_for(self, event: str) -> dict[str, Any]:
        def read() -> dict[str, Any]:
            assert self._child.stdout
            for line in self._child.stdout:
                self.events.append(json.loads(line))
                if self.events[-1]["event"] == event:
                    return self.events[-1]
            pytest.fail(f"it ended without {event!r}: {self.events}")

        return await asyncio.wait_for(asyncio.to_thread(read), PATIENCE)

    async def end(self, number: int) -> int:
        self._child.send_signal(number)
        rest, _ = await asyncio.to_thread(self._child.communicate, timeout=PATIENCE)
        self.events += [json.loads(line) for line in rest.splitlines()]
        return self._child.returncode


@contextlib.asynccontextmanager
async def process(folder: Path, *words: str) -> AsyncIterator[tuple[Process, Side]]:
    child = Process(folder, *words)
    try:
        address = (await child.wait_for("serving"))["address"]
        async with grpc.aio.insecure_channel(address) as channel:
            yield child, Side(child, channel)  # type: ignore[arg-type]
    finally:
        await child.end(signal.SIGKILL)


async def open_plainly(side: Side, service: str) -> tuple[str, str]:
    uid = fresh()
    answer = await side.req(request(uid, encrypted=False, greeted=True, targets=[service]))
    await side.update(pb.UpdateTargets(uid=uid, remote_listeners=[service]))
    return uid, answer.listeners[0]


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
            assert time.monotonic() - died < 1
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


TEXT = st.text(max_size=80)
UIDS = st.one_of(TEXT, st.sampled_from(["known", "other"]))
ROLES = st.one_of(TEXT, st.sampled_from(["PROD", "CONS"]))
ADDRESSES = st.lists(st.one_of(TEXT, st.sampled_from(["127.0.0.1:9", "0.0.0.0:1", "[::1]:22"])), max_size=5)
INT32 = st.one_of(st.integers(-(2**31), 2**31 - 1), st.integers(0, 3))
MESSAGES: dict[str, st.SearchStrategy[bytes]] = {
    "Control/req": st.builds(
        pb.Request,
        uid=UIDS,
        role=ROLES,
        num_conn=INT32,
        rate=INT32,
        encrypted=st.booleans(),
        greeted=st.just(True),
        targets=ADDRESSES,
    ).map(lambda message: message.SerializeToString()),
    "Control/hello": st.builds(pb.Hello, uid=UIDS, role=ROLES, prod_listeners=ADDRESSES).map(
        lambda message: message.SerializeToString()
    ),
    "Control/update": st.builds(
        pb.UpdateTargets, uid=UIDS, role=ROLES, remote_listeners=ADDRESSES, peer_certificate=TEXT
    ).map(lambda message: message.SerializeToString()),
    "Control/release": st.builds(pb.Release, uid=TEXT).map(lambda message: message.SerializeToString()),
    "Gateway/list": st.builds(pb.ListRequest, uid=UIDS).map(lambda message: message.SerializeToString()),
    "Gateway/renew": st.builds(pb.RenewRequest, uid=UIDS).map(lambda message: message.SerializeToString()),
}
CALLS = st.sampled_from(sorted(MESSAGES)).flatmap(
    lambda name: st.tuples(st.just(name), st.one_of(MESSAGES[name], st.binary(max_size=300)))
)
MENDABLE = set(Code) - {Code.INTERNAL, Code.UNKNOWN, Code.UNIMPLEMENTED, Code.UNAVAILABLE}


def test_whatever_is_sent_the_next_good_request_is_served(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Messages of the right shape and nonsense inside, and bytes that are no message at all."""

    async def send(side: Side, calls: list[tuple[str, bytes]]) -> None:
        answers: list[tuple[Code, str]] = []
        for name, body in calls:
            method = side.channel.unary_unary(f"/scistream.{name}")
            try:
                await asyncio.wait_for(method(body, metadata=[("authorization", "x")]), 5)
            except grpc.aio.AioRpcError as error:
                answers.append((error.code(), error.details() or ""))
            except TimeoutError:
                assert name == "Control/req"  # bytes that happen to be a good request wait for their hello
        assert all(code in MENDABLE or "DecodeError" in text for code, text in answers), (calls, answers)
        uid = fresh()
        await side.req(request(uid, greeted=True, targets=["127.0.0.1:9"]))
        await side.release(pb.Release(uid=uid))

    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        side = runner.run(stack.enter_async_context(serving(tmp_path, request_timeout=1)))

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.lists(CALLS, min_size=1, max_size=6))
        def check(calls: list[tuple[str, bytes]]) -> None:
            runner.run(send(side, calls))

        check()
        huge = request(fresh(), greeted=True, targets=["127.0.0.1:9"] * 100_000)
        assert runner.run(refusal(side.req(huge)))[0] is Code.RESOURCE_EXHAUSTED
        runner.run(send(side, []))
        runner.run(stack.aclose())
    assert "internal fault" not in capfd.readouterr().out
    assert proxies(tmp_path) == []
