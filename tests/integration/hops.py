"""Two proxies as of two gateways, a service behind them, and what is sent through."""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from s2cs.addresses import Address
from s2cs.dataservers.spec import ProxySpec, Tls
from s2cs.dataservers.supervisor import Proxies, Proxy
from s2cs.trust import SessionKeys, make_session_keys, write_private
from tests.ports import some_port

HERE = "127.0.0.1"


def free_ports(count: int) -> list[int]:
    """Return ports that are free, and below those that the system gives to clients: nobody takes them meanwhile."""
    found: list[int] = []
    while len(found) < count:
        port = some_port()
        with suppress(OSError), socket.create_server((HERE, port)):
            found = [*{*found, port}]
    return found


class Services:
    """Targets that greet with their own number, then echo; they note what comes."""

    def __init__(self) -> None:
        self.connections = 0
        self._servers: list[asyncio.Server] = []

    async def start(self, count: int) -> list[Address]:
        for index in range(count):
            self._servers.append(await asyncio.start_server(self._handler(index), HERE, 0, limit=1 << 20))
        return [Address(*server.sockets[0].getsockname()) for server in self._servers]

    def _handler(self, index: int) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.connections += 1
            with suppress(ConnectionError):
                writer.write(bytes([index]))
                while data := await reader.read(1 << 20):
                    writer.write(data)
                    await writer.drain()
            writer.close()

        return handle

    def close(self) -> None:
        for server in self._servers:
            server.close()


@dataclass
class Hop:
    """An inbound and an outbound proxy, each in its folder, and the services behind them."""

    kind: str
    folder: Path
    encrypted: bool = True
    count: int = 1
    rate: int = 0
    middle: Address | None = None
    images: dict[str, str] = field(default_factory=dict)
    restarts: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    async def __aenter__(self) -> "Hop":
        self.services = Services()
        targets = await self.services.start(self.count)
        ports = [Address(HERE, port) for port in free_ports(2 * self.count)]
        inbound, outbound = ports[: self.count], ports[self.count :]
        self.keys = [self._keys(side) for side in ("prod", "cons")]
        self.proxies = Proxies(self.kind, self.folder, self.images)
        self.specs = [
            self._spec("prod", "server", zip(inbound, targets, strict=True), self.keys[1]),
            self._spec(
                "cons", "client", zip(outbound, [self.middle] if self.middle else inbound, strict=True), self.keys[0]
            ),
        ]
        self.running: list[Proxy] = []
        try:
            for spec in self.specs:
                self.running.append(await self.start(spec))
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_exc: object) -> None:
        for proxy in self.running:
            await proxy.stop()
        self.services.close()

    async def start(self, spec: ProxySpec) -> Proxy:
        return await self.proxies.start(
            self.kind, spec, lambda _n, why: self.restarts.append(why), self.failures.append
        )

    def _keys(self, side: str) -> SessionKeys:
        (self.folder / side).mkdir(mode=0o700, parents=True, exist_ok=True)
        return make_session_keys(self.folder / side, "own")

    def _spec(self, side, role, pairs, peer) -> ProxySpec:
        folder = self.folder / side
        write_private(folder / "peer.crt", peer.pem.encode())
        tls = Tls(role, folder / "own.crt", folder / "own.key", folder / "peer.crt") if self.encrypted else None
        return ProxySpec("uid", folder, tuple(pairs), tls, self.rate)

    @property
    def entrances(self) -> list[Address]:
        return [listener for listener, _ in self.specs[1].pairs]

    @property
    def ports(self) -> frozenset[int]:
        return self.specs[0].ports | self.specs[1].ports


async def echo(address: Address, payload: bytes, service: int = 0) -> None:
    """Send through a tunnel and read all of it back."""
    async with asyncio.timeout(20):
        reader, writer = await asyncio.open_connection(address.host, address.port, limit=1 << 20)
        assert await reader.readexactly(1) == bytes([service])

        async def send() -> None:
            writer.write(payload)
            await writer.drain()

        _, received = await asyncio.gather(send(), reader.readexactly(len(payload)))
        assert received == payload
        writer.close()
        await writer.wait_closed()


async def until(condition: Callable[[], object], patience: float = 30.0) -> float:
    """Wait for a condition; return how long that took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < patience, "it does not come"
        await asyncio.sleep(0.005)
    return time.monotonic() - began


async def count(proxy: Proxy, least: int, connections: int = 0) -> int:
    """Return the bytes of both directions, once these are counted and so many connections are left."""
    async with asyncio.timeout(20):
        while (traffic := await proxy.traffic()) and (
            traffic.connections > connections or traffic.bytes_in + traffic.bytes_out < least
        ):
            await asyncio.sleep(0.01)
    assert traffic is not None
    return traffic.bytes_in + traffic.bytes_out
