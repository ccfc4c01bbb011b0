"""Control servers for tests, in this process or as programs; services behind them, and calls to them."""

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from s2cs.dataservers import proc
from s2cs.proto import scistream_pb2 as pb
from s2cs.proto import scistream_pb2_grpc as rpc
from s2cs.server import ControlServer
from s2cs.settings import ServerSettings
from tests.ports import some_port

ANYWHERE = "127.0.0.0/8:1-65535"

PATIENCE = 20.0

PROD_HOST, CONS_HOST = "127.0.0.2", "127.0.0.3"

Code = grpc.StatusCode


def some_ports(count: int) -> str:
    """A range below the ports that the kernel gives to clients; the pool passes over those in use."""
    first = some_port(count)
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


class Process:
    """A control server in a process of its own, by the command's words; `wrapper` are words before them."""

    def __init__(self, folder: Path, *words: str, wrapper: Sequence[str] = ()) -> None:
        command = [*wrapper, sys.executable, "-c", "from s2cs.main import main; main()", *words]
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
async def process(folder: Path, *words: str, wrapper: Sequence[str] = ()) -> AsyncIterator[tuple[Process, Side]]:
    child = Process(folder, *words, wrapper=wrapper)
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
