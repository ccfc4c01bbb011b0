"""The real proxies, in pairs as between two gateways, with real connections through them."""

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import paramiko
import pytest

from ministream.base.errors import UserError
from s2cs.addresses import Address
from s2cs.dataservers import proc
from s2cs.dataservers.runner_docker import engine
from s2cs.dataservers.spec import ProxySpec
from s2cs.dataservers.supervisor import Proxies
from s2cs.store import ProcessRecord
from s2cs.trust import SessionKeys, account_name, make_session_keys, write_private
from tests.integration.hops import HERE, Hop, count, echo, until

pytestmark = pytest.mark.needs("haproxy", "nginx", "stunnel", "sshd")

ENCRYPTED = ("haproxy", "nginx", "stunnel", "ssh")
PLAIN = ("haproxy", "nginx")
PRIVSEP = Path("/run/sshd")


@pytest.fixture(autouse=True, scope="module")
def _folder_of_sshd() -> None:
    """Make the empty folder that sshd insists on when root starts it, as its service unit would; it stays."""
    if os.geteuid() == 0:
        PRIVSEP.mkdir(mode=0o755, exist_ok=True)


@pytest.mark.parametrize(("kind", "encrypted"), [*((k, True) for k in ENCRYPTED), *((k, False) for k in PLAIN)])
def test_each_connection_reaches_its_own_target_and_nothing_is_left_afterwards(tmp_path, kind, encrypted):
    async def main() -> None:
        payload = os.urandom(1 << 21)
        async with Hop(kind, tmp_path, encrypted, count=3) as hop:
            await asyncio.gather(*(echo(a, payload, i) for i, a in enumerate(hop.entrances)))
            for spec, proxy in zip(hop.specs, hop.running, strict=True):
                modes = {p.stat().st_mode & 0o777 for p in spec.folder.iterdir() if p.is_file()}
                assert modes == {0o600}
                assert spec.ports == proc.listening_ports(proxy.record.pid)
            with pytest.raises(ConnectionRefusedError):  # another address of this machine
                await asyncio.open_connection("127.0.0.2", hop.entrances[0].port)
            records = [proxy.record.pid for proxy in hop.running]
        assert not proc.members(tmp_path)
        assert not hop.ports & proc.listened_ports()
        assert [proc.started(pid) for pid in records] == [0, 0]
        assert not hop.restarts + hop.failures

    asyncio.run(main())


@pytest.mark.parametrize("kind", ENCRYPTED)
def test_bytes_and_connections_are_counted_while_they_flow(tmp_path, kind):
    async def main() -> None:
        async with Hop(kind, tmp_path) as hop:
            reader, writer = await asyncio.open_connection(HERE, hop.entrances[0].port)
            writer.write(bytes(100_000))
            async with asyncio.timeout(20):
                await reader.readexactly(100_001)
            traffic = await hop.running[1].traffic()
            assert traffic is not None
            assert traffic.connections == 1
            assert (traffic.bytes_in, traffic.bytes_out) == (100_000, 100_001)
            writer.close()
            await writer.wait_closed()
            assert await count(hop.running[1], 200_001) == 200_001

    asyncio.run(main())


@pytest.mark.parametrize("kind", ENCRYPTED)
def test_connections_are_counted_that_came_and_went_between_two_looks(tmp_path, kind):
    async def main() -> None:
        async with Hop(kind, tmp_path) as hop:
            for _ in range(10):
                await echo(hop.entrances[0], bytes(10_000))
            assert await count(hop.running[1], 200_010) == 200_010
            assert await count(hop.running[0], 200_010, connections=1) < 300_000  # the SSH connection stays

    asyncio.run(main())


@pytest.mark.parametrize(("kind", "encrypted"), [*((k, True) for k in ENCRYPTED), *((k, False) for k in PLAIN)])
def test_who_has_said_all_still_hears_the_answer(tmp_path, kind, encrypted):
    async def main() -> None:
        async with Hop(kind, tmp_path, encrypted) as hop:
            reader, writer = await asyncio.open_connection(HERE, hop.entrances[0].port)
            writer.write(bytes(3_000_000))
            writer.write_eof()
            async with asyncio.timeout(20):
                assert len(await reader.read()) == 3_000_001
            writer.close()

    asyncio.run(main())


class Relay:
    """Stands between two gateways and keeps what passes."""

    def __init__(self) -> None:
        self.seen = bytearray()
        self.target: Address | None = None

    async def start(self) -> Address:
        self.server = await asyncio.start_server(self._handle, HERE, 0)
        return Address(*self.server.sockets[0].getsockname())

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self.target
        there, back = await asyncio.open_connection(self.target.host, self.target.port)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with suppress(ConnectionError):
                while data := await source.read(1 << 16):
                    self.seen += data
                    sink.write(data)
                    await sink.drain()
            sink.close()

        await asyncio.gather(pump(reader, back), pump(there, writer))


@pytest.mark.parametrize(("kind", "encrypted"), [*((k, True) for k in ENCRYPTED), ("haproxy", False)])
def test_between_the_gateways_no_plaintext_is_seen(tmp_path, kind, encrypted):
    async def main() -> None:
        relay = Relay()
        address = await relay.start()
        async with Hop(kind, tmp_path, encrypted, middle=address) as hop:
            relay.target = hop.specs[0].pairs[0][0]
            await echo(hop.entrances[0], b"projection " * 20_000)
            assert len(relay.seen) > 400_000
            assert (b"projection" in relay.seen) is not encrypted
        relay.server.close()

    asyncio.run(main())


def client_context(keys: SessionKeys | None, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = newest
    if keys:
        context.load_cert_chain(keys.certificate, keys.key)
    return context


async def try_in(address: Address, context: ssl.SSLContext) -> bytes:
    """Return what a service says through an inbound proxy to whoever comes with this context."""
    try:
        async with asyncio.timeout(20):
            reader, writer = await asyncio.open_connection(address.host, address.port, ssl=context)
            writer.write(b"let me in")
            return await reader.read(1)
    except (OSError, ssl.SSLError):
        return b""
    finally:
        with suppress(UnboundLocalError):
            writer.transport.abort()


@pytest.mark.parametrize("kind", ["haproxy", "nginx", "stunnel"])
def test_only_the_peer_s_own_certificate_opens_the_inbound_proxy(tmp_path, kind):
    async def main() -> None:
        foreign = make_session_keys(tmp_path, "foreign")  # the same names, another key
        async with Hop(kind, tmp_path) as hop:
            inbound = hop.specs[0].pairs[0][0]
            own, peer = hop.keys
            old = ssl.TLSVersion.TLSv1_2
            for context in (
                client_context(None),
                client_context(foreign),
                client_context(own),
                client_context(peer, old),
            ):
                assert await try_in(inbound, context) == b""
            assert hop.services.connections == 0
            assert await try_in(inbound, client_context(peer)) == b"\0"

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["haproxy", "nginx", "stunnel"])
def test_an_impostor_in_the_inbound_proxy_s_place_is_told_nothing(tmp_path, kind):
    async def main() -> None:
        foreign, heard = make_session_keys(tmp_path, "foreign"), []

        async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heard.append(await reader.read(100))
            writer.close()

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(foreign.certificate, foreign.key)
        server = await asyncio.start_server(listen, HERE, 0, ssl=context)
        async with Hop(kind, tmp_path, middle=Address(*server.sockets[0].getsockname())) as hop:
            reader, writer = await asyncio.open_connection(HERE, hop.entrances[0].port)
            writer.write(b"secret")
            async with asyncio.timeout(20):
                with suppress(ConnectionError):
                    assert await reader.read() == b""
            writer.close()
        server.close()
        assert not any(heard)

    asyncio.run(main())


def ssh_connect(address: Address, keys: SessionKeys) -> paramiko.Transport:
    transport = paramiko.Transport((address.host, address.port))
    transport.start_client(timeout=20)
    transport.auth_publickey(account_name(), paramiko.ECDSAKey.from_private_key_file(str(keys.key)))
    return transport


def test_sshd_lets_one_key_reach_the_targets_and_nothing_else(tmp_path):
    def attack(inbound: Address, target: Address, other: Address, peer: SessionKeys, foreign: SessionKeys) -> None:
        with pytest.raises(paramiko.AuthenticationException):
            ssh_connect(inbound, foreign)
        transport = ssh_connect(inbound, peer)
        try:
            with pytest.raises(paramiko.ChannelException, match="prohibited"):
                transport.open_channel("direct-tcpip", (other.host, other.port), (HERE, 0), timeout=20)
            with pytest.raises(paramiko.SSHException):
                transport.request_port_forward(HERE, 0)
            with transport.open_session(timeout=20) as channel:
                channel.exec_command("cat /etc/passwd")
                assert channel.makefile("rb").read().decode() == f"{target}\n"
            with transport.open_channel("direct-tcpip", (target.host, target.port), (HERE, 0), timeout=20) as channel:
                assert channel.recv(1) == b"\0"
        finally:
            transport.close()

    async def main() -> None:
        foreign = make_session_keys(tmp_path, "foreign")
        async with Hop("ssh", tmp_path) as hop:
            inbound, target = hop.specs[0].pairs[0]
            await asyncio.to_thread(attack, inbound, target, hop.entrances[0], hop.keys[1], foreign)

    asyncio.run(main())


def test_the_ssh_forwarder_leaves_a_host_with_another_key(tmp_path):
    async def main() -> None:
        async with Hop("ssh", tmp_path / "a") as other:
            inbound = other.specs[0].pairs[0][0]
            async with Hop("ssh", tmp_path / "b", middle=inbound) as hop:
                reader, writer = await asyncio.open_connection(HERE, hop.entrances[0].port)
                async with asyncio.timeout(20):
                    assert await reader.read() == b""
                writer.close()
                assert "not this session's inbound gateway" in (hop.specs[1].folder / "proxy.log").read_text()

    asyncio.run(main())


@pytest.mark.parametrize("kind", ENCRYPTED)
def test_a_proxy_that_is_killed_comes_back_soon_at_the_same_ports(tmp_path, kind):
    async def main() -> None:
        async with Hop(kind, tmp_path) as hop:
            await echo(hop.entrances[0], b"before")
            for proxy in hop.running:
                seen, before = len(hop.restarts), proxy.record
                os.kill(before.pid, signal.SIGKILL)
                assert await until(lambda seen=seen: len(hop.restarts) > seen) < 10
                assert proxy.alive
                assert proxy.restarts == 1
                assert proxy.record != before
            assert all("SIGKILL" in why for why in hop.restarts)
            await echo(hop.entrances[0], b"after")

    asyncio.run(main())


def test_what_dies_again_and_again_is_given_up(tmp_path):
    async def main() -> None:
        async with Hop("haproxy", tmp_path) as hop:
            for number in range(5):
                os.kill(hop.running[0].record.pid, signal.SIGKILL)
                await until(lambda number=number: len(hop.restarts) > number or hop.failures)
            assert len(hop.restarts) == 4
            assert "5 times in a row" in hop.failures[0]
            assert not hop.running[0].alive

    asyncio.run(main())


def test_a_connection_through_sshd_ends_with_its_session_even_if_sshd_was_killed_before(tmp_path):
    async def main() -> None:
        async with Hop("ssh", tmp_path) as hop:
            reader, writer = await asyncio.open_connection(HERE, hop.entrances[0].port)
            await reader.readexactly(1)
            os.kill(hop.running[0].record.pid, signal.SIGKILL)
            await until(lambda: hop.restarts)
            writer.write(b"on it goes")
            assert await reader.readexactly(10) == b"on it goes"
            await hop.running[0].stop()
            assert not proc.members(hop.specs[0].folder)
            async with asyncio.timeout(20):
                assert await reader.read() == b""
            writer.close()

    asyncio.run(main())


@pytest.mark.parametrize(("kind", "words"), [("haproxy", "cannot bind socket"), ("stunnel", "Address already in use")])
def test_a_proxy_that_does_not_start_says_why_and_leaves_nothing(tmp_path, kind, words):
    async def main() -> None:
        async with Hop(kind, tmp_path) as hop:
            await hop.running[1].stop()
            with socket.create_server((HERE, hop.entrances[0].port)), pytest.raises(UserError, match=words):
                await hop.start(hop.specs[1])
            assert not proc.members(hop.specs[1].folder)

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["haproxy", "nginx", "stunnel", "ssh"])
def test_a_configuration_that_the_proxy_refuses_is_told_in_its_words(tmp_path, kind):
    async def main() -> None:
        async with Hop(kind, tmp_path) as hop:
            await hop.running[0].stop()
            write_private(hop.specs[0].folder / "own.key", b"no key")
            write_private(hop.specs[0].folder / "own.crt", b"no certificate")
            with pytest.raises(UserError, match=r"own\.(key|crt)|no hostkeys"):
                await hop.start(hop.specs[0])
            assert not proc.members(hop.specs[0].folder)

    asyncio.run(main())


FIRST_SERVER = """
import asyncio, json, sys
from dataclasses import asdict
from pathlib import Path
from s2cs.addresses import parse_address
from s2cs.dataservers.spec import ProxySpec
from s2cs.dataservers.supervisor import Proxies

async def main(kind, folder, *pairs):
    addresses = [parse_address(a) for a in pairs]
    spec = ProxySpec("uid", Path(folder) / "cons", ((addresses[0], addresses[1]),))
    proxy = await Proxies(kind, Path(folder)).start(kind, spec, print, print)
    print(json.dumps(asdict(proxy.record)))
    await proxy.leave()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("kind", PLAIN)
def test_a_proxy_outlives_its_control_server_and_the_next_one_adopts_it(tmp_path, kind):
    async def main() -> None:
        async with Hop(kind, tmp_path, encrypted=False) as hop:
            await hop.running.pop().stop()
            spec = hop.specs[1]
            argv = [sys.executable, "-c", FIRST_SERVER, kind, str(tmp_path), *map(str, spec.pairs[0])]
            said = await asyncio.to_thread(subprocess.run, argv, check=True, capture_output=True, text=True)
            record = ProcessRecord(**json.loads(said.stdout))
            await echo(hop.entrances[0], b"alone")
            adopt = (spec, record, lambda _n, why: hop.restarts.append(why), hop.failures.append)
            proxy = await Proxies(kind, tmp_path).adopt(kind, *adopt)
            assert proxy
            hop.running.append(proxy)
            await echo(hop.entrances[0], b"adopted")
            os.kill(record.pid, signal.SIGKILL)
            assert await until(lambda: hop.restarts) < 10
            await echo(hop.entrances[0], b"restarted")
            assert await Proxies(kind, tmp_path).adopt(kind, *adopt) is None

    asyncio.run(main())


def test_another_process_with_the_same_number_is_not_adopted(tmp_path):
    async def main() -> None:
        spec = ProxySpec("uid", tmp_path, ((Address(HERE, 1), Address(HERE, 2)),))
        for record in (ProcessRecord(pid=os.getpid(), started=1), ProcessRecord(), ProcessRecord(pid=2**22, started=5)):
            assert await Proxies("haproxy", tmp_path).adopt("haproxy", spec, record, print, print) is None

    asyncio.run(main())


def test_proxies_without_a_session_are_ended_and_no_other(tmp_path):
    async def main() -> None:
        async with Hop("haproxy", tmp_path / "state") as hop, Hop("haproxy", tmp_path / "other") as other:
            await hop.running[1].leave()
            with Path(hop.specs[1].folder / "proxy.log").open() as log:  # an operator reads along
                reader = await asyncio.create_subprocess_exec("tail", "-f", "-", stdin=log, stdout=subprocess.DEVNULL)
                await hop.proxies.end_strangers([hop.running[0].record])
                assert reader.returncode is None
                reader.kill()
                await reader.wait()
            assert [hop.running[0].alive, hop.running[1].alive] == [True, False]
            assert [proxy.alive for proxy in other.running] == [True, True]
            assert not hop.restarts

    asyncio.run(main())


def test_nginx_keeps_a_session_to_its_rate(tmp_path):
    async def main() -> None:
        rate = 4_000_000
        async with Hop("nginx", tmp_path, encrypted=False, rate=rate) as hop:
            began = time.monotonic()
            await echo(hop.entrances[0], bytes(2 * rate))
            assert time.monotonic() - began > 1.0  # both hops let a second's worth pass at once
            while (traffic := await hop.running[0].traffic()) and traffic.connections:
                await asyncio.sleep(0.01)
            first, writer = await asyncio.open_connection(HERE, hop.entrances[0].port)
            await first.readexactly(1)
            second, other = await asyncio.open_connection(HERE, hop.entrances[0].port)
            async with asyncio.timeout(20):
                with suppress(ConnectionError):
                    assert await second.read() == b""  # a second connection would double the rate
            writer.close()
            other.close()

    asyncio.run(main())


def test_a_rate_that_cannot_be_kept_is_refused(tmp_path):
    async def main() -> None:
        spec = ProxySpec("uid", tmp_path, ((Address(HERE, 1), Address(HERE, 2)),), rate=1)
        with pytest.raises(UserError, match="haproxy cannot keep a rate"):
            await Proxies("haproxy", tmp_path).start("haproxy", spec, print, print)

    asyncio.run(main())


def test_without_docker_s_sdk_or_engine_a_container_is_refused_in_a_clear_sentence(monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    with pytest.raises(UserError, match="no Docker engine answers"):
        engine()
    monkeypatch.setitem(sys.modules, "docker", None)
    with pytest.raises(UserError, match=r"mini-stream\[docker\]"):
        engine()
