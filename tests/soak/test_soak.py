"""Long runs through two gateways: whatever hundreds of sessions have done, nothing is left of them; and long silence.

Control servers, proxies and TLS between the gateways are real, and so is the control protocol with its tokens; what
went through each tunnel is compared by digest. Run by `make soak`.
"""

import contextlib
import gc
import hashlib
import os
import random
import socket
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import pytest

from s2cs.client import Gateway, Tunnel
from s2cs.dataservers import proc
from tests.sites import Site, converse, service, two_sites

pytestmark = [pytest.mark.soak, pytest.mark.needs("haproxy"), pytest.mark.timeout(1800)]

SESSIONS, WARM_UP = 500, 100
AT_ONCE = 50
PAYLOAD = 1 << 18
SILENCE = 200.0
"""Seconds: longer than the 50 of SciStream's settings, the 60 and 120 that are common, and our own leases."""
GROWTH = 4 << 20
"""Bytes that the memory of a process may grow by in 400 sessions: 10 KiB each would be twice it."""
BREATH = 2
"""Threads that the pools of gRPC may have more at one moment than at another."""
PATIENCE = 30.0


def sent_through(listener: str, name: bytes, payload: bytes) -> bytes:
    """Send `payload` to the service that greets by `name`; return the digest of what came back."""
    host, port = listener.split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
        sender = threading.Thread(target=connection.sendall, args=(payload,))
        sender.start()
        with connection.makefile("rb") as answer:
            assert answer.read(len(name)) == name
            digest = hashlib.sha256(answer.read(len(payload))).digest()
        sender.join()
    return digest


def one_session(gateways: tuple[Gateway, Gateway], number: int) -> float:
    """Open a tunnel to a service of its own, verify what it carries, and release it; return the seconds to open."""
    name, payload = b"service %d" % number, random.Random(number).randbytes(PAYLOAD)
    with service(name) as target:
        began = time.monotonic()
        with Tunnel(*gateways, [target]) as tunnel:
            took = time.monotonic() - began
            assert sent_through(tunnel.listeners[0], name, payload) == hashlib.sha256(payload).digest()
    return took


@contextlib.contextmanager
def gateways_of(sites: list[Site]) -> Iterator[tuple[Gateway, Gateway]]:
    with sites[0].gateway("producer") as producer, sites[1].gateway("consumer") as consumer:
        yield producer, consumer


def memory(pid: int) -> int:
    """Return the resident bytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def holdings(sites: list[Site]) -> Counter[str]:
    """Return what both servers, and this process as their user, have at the moment."""
    found: Counter[str] = Counter()
    for pid in (os.getpid(), *(site.process.pid for site in sites)):
        found["threads"] += len([*Path(f"/proc/{pid}/task").iterdir()])
        found["descriptors"] += len([*Path(f"/proc/{pid}/fd").iterdir()])
        found["listeners"] += len(proc.listening_ports(pid))
        found["children"] += len(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    for site in sites:
        found["proxies"] += len(proc.members(site.state))
        found["files"] += len([*site.state.rglob("*")])
    return found


def settled(sites: list[Site], before: Counter[str]) -> Counter[str]:
    """Return the holdings as soon as they are no more than `before`, or as they are in the end."""
    deadline = time.monotonic() + PATIENCE
    while (now := holdings(sites)) - before and time.monotonic() < deadline:
        time.sleep(0.1)
    return now


def assert_nothing_left(sites: list[Site], before: Counter[str]) -> None:
    left = settled(sites, before) - before
    print(f"held before: {dict(before)}; more at the end: {dict(left) or 'nothing'}")
    assert left.pop("threads", 0) <= BREATH
    assert not left
    assert [site.sessions() for site in sites] == [[], []]
    assert [event for site in sites for event in site.events() if event["level"] in ("error", "critical")] == []


@pytest.mark.parametrize("kind", ["haproxy", pytest.param("stunnel", marks=pytest.mark.needs("stunnel"))])
def test_hundreds_in_a_row(tmp_path: Path, kind: str) -> None:
    with two_sites(tmp_path, type=kind) as sites, gateways_of(sites) as gateways:
        servers = [site.process.pid for site in sites]
        for number in range(WARM_UP):
            one_session(gateways, number)
        gc.collect()
        before, sizes = holdings(sites), [memory(pid) for pid in servers]
        began = time.monotonic()
        opened = [one_session(gateways, number) for number in range(WARM_UP, SESSIONS)]
        took = time.monotonic() - began
        grown = [memory(pid) - size for pid, size in zip(servers, sizes, strict=True)]
        print(f"{len(opened)} sessions in {took:.0f} s, each opened in {1000 * statistics.median(opened):.0f} ms")
        print(f"memory of the servers: {[size >> 10 for size in sizes]} KiB, grown by {[g >> 10 for g in grown]} KiB")
        assert_nothing_left(sites, before)
        assert max(grown) < GROWTH


def test_fifty_at_once_and_again(tmp_path: Path) -> None:
    """Three times: what the first fifty leave in pools of threads and memory must do for the others."""
    with (
        two_sites(tmp_path) as sites,
        gateways_of(sites) as gateways,
        futures.ThreadPoolExecutor(AT_ONCE) as pool,
    ):
        for batch in range(3):
            began = time.monotonic()
            list(pool.map(lambda number: one_session(gateways, number), range(batch * AT_ONCE, (batch + 1) * AT_ONCE)))
            sizes = [memory(site.process.pid) >> 10 for site in sites]
            print(f"{AT_ONCE} at once in {time.monotonic() - began:.1f} s, memory of the servers {sizes} KiB")
            if batch == 0:
                before = holdings(sites)
        assert_nothing_left(sites, before)


@pytest.mark.needs("haproxy", "nginx", "stunnel", "sshd")
def test_data_after_minutes_of_silence(tmp_path: Path) -> None:
    """A detector that pauses in mid-scan: nothing on the way takes the silence for the end."""
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(service(b"lab"))
        streams = {}
        for kind in ("haproxy", "nginx", "stunnel", "ssh"):
            (tmp_path / kind).mkdir()
            sites = stack.enter_context(two_sites(tmp_path / kind, type=kind))
            tunnel = stack.enter_context(Tunnel(*stack.enter_context(gateways_of(sites)), [target]))
            assert converse(tunnel.listeners[0], b"lab") == b"a frame\n"
            host, port = tunnel.listeners[0].split(":")
            connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=PATIENCE))
            streams[kind] = stack.enter_context(connection.makefile("rwb", buffering=0))
            assert streams[kind].read(3) == b"lab"
        time.sleep(SILENCE)
        for kind, stream in streams.items():
            stream.write(b"still here\n")
            assert stream.readline() == b"still here\n", kind
        print(f"all of {', '.join(streams)} carry after {SILENCE:.0f} s of silence")
