"""Random kills in mid-stream: whoever is killed, and when, everything else carries on, and nothing is left in the end.

Victims are the control servers, the proxies and the user's client, alone and in every combination; a seed makes each
sequence of blows, and a failing one can be run again by its number. Run by `make faults`.
"""

import contextlib
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from s2cs import logins
from s2cs.client import probe
from s2cs.dataservers import proc
from s2cs.proto import scistream_pb2 as pb
from tests.sites import Site, converse, listeners_of, running, service, two_sites

pytestmark = [pytest.mark.faults, pytest.mark.needs("haproxy", "stunnel"), pytest.mark.timeout(600)]

SEEDS, BLOWS, OPENINGS = 12, 2, 20
PATIENCE = 60.0
LEASE = 20.0
"""Seconds: a killed server must be back within it, also on a busy machine, where its start alone takes ten."""
BLOCK = 1 << 14
GREETING = b"lab"


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)  # asking costs a handshake


def come_back(sites: list[Site]) -> None:
    for site in sites:
        site.come_back()
    for site in sites:
        site.wait_until_it_serves()


class Stream:
    """A connection that carries blocks to the service and back, and compares them, until it is cut or closed."""

    def __init__(self, listener: str) -> None:
        host, port = listener.split(":")
        self._connection = socket.create_connection((host, int(port)), timeout=PATIENCE)
        self._over = threading.Event()
        self.blocks, self.wrong, self.cut = 0, False, ""
        self._thread = threading.Thread(target=self._carry)
        self._thread.start()

    def _carry(self) -> None:
        data = random.Random(self.blocks)
        try:
            with self._connection, self._connection.makefile("rwb") as stream:
                self.wrong = not GREETING.startswith(stream.read(len(GREETING)))  # cut short where it was killed
                while not self._over.wait(0.002):
                    block = data.randbytes(BLOCK)
                    stream.write(block)
                    stream.flush()
                    answer = stream.read(BLOCK)
                    self.wrong |= not block.startswith(answer)
                    if len(answer) < BLOCK:
                        raise ConnectionError("closed")
                    self.blocks += 1
        except OSError as error:
            self.cut = str(error) or repr(error)

    def assert_carries(self) -> None:
        """Fail unless more blocks than before come back."""
        before = self.blocks
        until(lambda: bool(self.cut) or self.blocks > before + 2, "the stream stands still")
        assert not self.cut, f"cut after {self.blocks} blocks: {self.cut}"
        assert not self.wrong

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        assert not self.wrong


class Held:
    """A tunnel that a client holds in the foreground, with a stream through it."""

    def __init__(self, stack: contextlib.ExitStack, words: list[str]) -> None:
        self.client: subprocess.Popen[str] = stack.enter_context(running(words))
        self.uid = self.client.stdout.readline().split()[1]
        (self.listener,) = listeners_of(self.client.stdout.readline())
        self.stream = Stream(self.listener)
        stack.callback(lambda: self.stream.close())

    def proxy(self, site: Site) -> int:
        (pid,) = (pid for pid, log in proc.members(site.state).items() if self.uid in str(log))
        return pid

    def session(self, site: Site) -> pb.SessionState:
        with site.gateway() as gateway:
            (found,) = gateway.list(self.uid)
        return found

    def assert_held(self, sites: list[Site]) -> None:
        """Fail unless the client renews the lease on both sides."""
        for site in sites:
            end = self.session(site).lease_left_seconds + time.monotonic()  # at the latest
            until(
                lambda site=site, end=end: time.monotonic() + self.session(site).lease_left_seconds > end, "no renewal"
            )

    def stream_anew(self) -> None:
        """Wait until the old stream has noticed its end, then begin another one."""
        until(lambda: bool(self.stream.cut), "a stream outlives its proxy")
        until(lambda: not probe([self.listener]), "the tunnel does not come back")
        self.stream.close()
        self.stream = Stream(self.listener)


def connect_words(sites: list[Site], target: str) -> list[str]:
    a, b = sites
    words = ["connect", "--producer-s2cs", a.address, "--consumer-s2cs", b.address, "--target", target]
    return [*words, "--ca", str(a.ca), "--ca", str(b.ca)]


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Site]], None]:
    """Log in at sites, in a folder of this test."""

    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    def log_in(sites: list[Site]) -> None:
        for site in sites:
            logins.store(site.address, site.token)

    return log_in


class Blow:
    """Some victims of one moment: servers, and the proxies and the client of one tunnel."""

    def __init__(self, chance: random.Random, sites: list[Site], tunnels: list[Held]) -> None:
        self.tunnel = chance.choice(tunnels)
        everybody = [("server", site) for site in sites] + [("proxy", site) for site in sites] + [("client", None)]
        self.victims = chance.sample(everybody, chance.randint(1, len(everybody)))
        self.pauses = [chance.uniform(0, 0.05) for _ in self.victims]
        self.restarts = {id(site): self.tunnel.session(site).restarts for site in sites}

    def strike(self) -> None:
        pids = {id(site): self.tunnel.proxy(site) for kind, site in self.victims if kind == "proxy"}
        for (kind, site), pause in zip(self.victims, self.pauses, strict=True):
            time.sleep(pause)
            match kind:
                case "server":
                    site.kill()
                case "proxy":
                    os.kill(pids[id(site)], signal.SIGKILL)
                case _:
                    self.tunnel.client.kill()
        come_back(self.struck("server"))

    def struck(self, kind: str) -> list[Site]:
        return [site for name, site in self.victims if name == kind]

    def assert_told(self) -> None:
        """Fail unless each session says what became of its proxy, and of nothing else."""
        for site in self.struck("proxy"):
            until(lambda site=site: self.tunnel.session(site).restarts > self.restarts[id(site)], "no restart is told")
            assert "proxy" in self.tunnel.session(site).reason

    def __str__(self) -> str:
        return " and ".join(kind for kind, _ in self.victims)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_whoever_is_killed_the_others_carry_on(tmp_path: Path, known, seed: int) -> None:
    chance = random.Random(seed)
    kind = chance.choice(["haproxy", "stunnel"])
    with (
        two_sites(tmp_path, type=kind, lease=str(LEASE)) as sites,
        service(GREETING) as target,
        contextlib.ExitStack() as stack,
    ):
        known(sites)
        tunnels = [Held(stack, connect_words(sites, target)) for _ in range(chance.randint(2, 3))]
        for _ in range(BLOWS):
            for tunnel in tunnels:
                tunnel.stream.assert_carries()
            blow = Blow(chance, sites, tunnels)
            print(f"{kind}, {len(tunnels)} tunnels: {blow}")
            blow.strike()
            carry_on(blow, sites, tunnels)
            if not tunnels:
                break
        for tunnel in tunnels:
            tunnel.client.terminate()
            assert tunnel.client.wait(PATIENCE) == 0
        assert_nothing_left(sites)


def carry_on(blow: Blow, sites: list[Site], tunnels: list[Held]) -> None:
    """Fail unless what was not struck goes on, and what was is back, or over."""
    if ("client", None) in blow.victims:
        tunnels.remove(blow.tunnel)
        until(lambda: all(blow.tunnel.uid not in site.sessions() for site in sites), "nobody holds it, and it is there")
        until(lambda: bool(blow.tunnel.stream.cut), "its stream goes on after the end of its tunnel")
        assert probe([blow.tunnel.listener])[0].endswith("Connection refused")
    elif blow.struck("proxy"):
        blow.assert_told()
        blow.tunnel.stream_anew()
    for tunnel in tunnels:
        tunnel.assert_held(sites)
        tunnel.stream.assert_carries()
        assert tunnel.client.poll() is None
    for site in sites:
        assert sorted(site.sessions()) == sorted(tunnel.uid for tunnel in tunnels)
        assert len(proc.members(site.state)) == len(tunnels)


def assert_nothing_left(sites: list[Site]) -> None:
    for site in sites:
        until(lambda site=site: not site.sessions(), "a session is left")
        assert proc.members(site.state) == {}
        assert [*(site.state / "sessions").iterdir()] == []
        assert "internal fault" not in site.log.read_text()
        assert [event for event in site.events() if event["level"] in ("error", "critical")] == []


@contextlib.contextmanager
def hasty_sites(folder: Path) -> Iterator[list[Site]]:
    """Sites that soon give up what nobody asks for any more."""
    with two_sites(folder, request_timeout="3", idle="4", lease="3") as sites:
        yield sites


def time_to_open(sites: list[Site], target: str) -> float:
    """Return the seconds that a client takes to open a tunnel, here and now."""
    begin = time.monotonic()
    with running([*connect_words(sites, target), "--detach"]) as client:
        assert client.wait(PATIENCE) == 0
    return time.monotonic() - begin


def test_a_client_killed_at_any_moment_of_its_life(tmp_path: Path, known) -> None:
    """Also before it has renewed for the first time: then the idle time ends what it has begun."""
    chance = random.Random(0)
    with hasty_sites(tmp_path) as sites, service(GREETING) as target:
        known(sites)
        whole = time_to_open(sites, target)
        for _ in range(OPENINGS):
            with running(connect_words(sites, target)) as client, contextlib.suppress(subprocess.TimeoutExpired):
                client.wait(chance.uniform(0.4, 2.0) * whole)
        assert_nothing_left(sites)


@pytest.mark.parametrize("side", [0, 1], ids=["producer", "consumer"])
def test_a_server_killed_at_any_moment_of_an_opening(tmp_path: Path, known, side: int) -> None:
    """The client says so in one sentence, or had its tunnel before; the server comes back and ends what was begun."""
    chance = random.Random(side)
    with hasty_sites(tmp_path) as sites, service(GREETING) as target:
        known(sites)
        whole, codes = time_to_open(sites, target), []
        for _ in range(OPENINGS):
            with running([*connect_words(sites, target), "--detach"]) as client:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    client.wait(chance.uniform(0.4, 1.2) * whole)
                sites[side].kill()
                out, errors = client.communicate(timeout=PATIENCE)
                come_back([sites[side]])
            codes.append(client.returncode)
            said = errors.splitlines()
            assert (codes[-1] == 0 and "Listeners: " in out) or said[-1].startswith("s2uc: error: "), (out, errors)
            assert "Traceback" not in errors
            until(lambda: all(not site.sessions() for site in sites), "half a tunnel is left")
        print(f"exit codes {sorted(codes)}")
        assert_nothing_left(sites)


def test_a_conversation_after_all_of_it(tmp_path: Path, known) -> None:
    """Everybody is killed at once, the servers come back, and the next tunnel carries."""
    with hasty_sites(tmp_path) as sites, service(GREETING) as target:
        known(sites)
        with contextlib.ExitStack() as stack:
            held = Held(stack, connect_words(sites, target))
            for pid in [held.client.pid, *(held.proxy(site) for site in sites)]:
                os.kill(pid, signal.SIGKILL)
            for site in sites:
                site.kill()
            come_back(sites)
            until(lambda: all(not site.sessions() for site in sites), "nobody holds it, and it is there")
        with running(connect_words(sites, target)) as client:
            client.stdout.readline()
            assert converse(listeners_of(client.stdout.readline())[0], GREETING) == b"a frame\n"
            client.terminate()
            assert client.wait(PATIENCE) == 0
        assert_nothing_left(sites)
