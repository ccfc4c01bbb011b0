"""What a tunnel through two gateways costs: throughput, latency, time to open; against a direct connection and peers.

Two control servers for each kind of proxy run on loopback, and all tunnels are open at once; rounds are interleaved
and shuffled, so that a noisy moment meets everybody. Data flow from the service to the one who connected, as they do
in a stream; for plaintext the other way round is measured, too, which is what iperf3 measures when it is not told.

The peers are today's SciStream proxies, run here as two hops with its documented settings: HAProxy (plain, its usual
buffers), and stunnel with a pre-shared key and `eNULL` (TLS 1.2 that does not encrypt). Left out, in their favour, are
their containers and their writing of logs. Their set-up time is left out, too: it needs Docker and a login.
"""

import json
import math
import multiprocessing
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import zmq

from ministream.base.errors import UserError
from ministream.base.lifecycle import PARENT
from s2cs.client import Gateway, Tunnel
from s2cs.dataservers import proc
from s2cs.dataservers.rendering import find_program
from s2cs.site import Site, init_site

HOST = "127.0.0.1"
DIRECT = "direct"
ROUTES = {
    "haproxy, plaintext": ("haproxy", False),
    "haproxy, TLS 1.3": ("haproxy", True),
    "nginx, TLS 1.3": ("nginx", True),
    "stunnel, TLS 1.3": ("stunnel", True),
    "ssh": ("ssh", True),
}
"""Kind of proxy and whether the way between the gateways is encrypted."""
DIRECTIONS = {"service to client": ["-R"], "client to service": []}
"""Ways that data flow, the stream's first, and the option of iperf3."""
ROUNDS, PLAIN_ROUNDS, SECONDS = 5, 9, 1
"""Plain routes differ little from a direct connection, which itself varies: their median needs more rounds."""
OPENINGS = 5
EXCHANGES = {64: 1000, 8 << 20: 100}
"""Number of exchanges for each size of message."""
PATIENCE = 20.0
PORTS = range(20_000, 30_000)
BLOCK = 50
"""Ports of one gateway."""

Addresses = tuple[str, str]
"""Where iperf3 and where the messages' service is reached."""


class Gateways:
    """The two control servers for one kind of proxy, and this process as their user."""

    def __init__(self, stack: ExitStack, folder: Path, site: Site, token: str, kind: str) -> None:
        first = random.randrange(PORTS.start, PORTS.stop - 2 * BLOCK)
        self.servers = [
            start(stack, serve_command(folder / f"{kind}-{name}", site, kind, port), stdout=subprocess.PIPE)
            for name, port in (("producer", first), ("consumer", first + BLOCK))
        ]
        self.kind = kind
        self._stack, self._site, self._token = stack, site, token

    def meet(self) -> None:
        """Wait until both serve."""
        self.addresses = [serving(server) for server in self.servers]
        self.producer, self.consumer = (
            self._stack.enter_context(Gateway(address, ca=[self._site.ca], token=self._token))
            for address in self.addresses
        )

    def release(self, uid: str) -> None:
        """End a tunnel that was left up."""
        self.producer.release(uid)
        self.consumer.release(uid)


def serve_command(state: Path, site: Site, kind: str, first_port: int) -> list[str]:
    """Return the command line of a control server."""
    options = {
        "listener-ip": HOST,
        "port": 0,
        "port-range": f"{first_port}-{first_port + BLOCK - 1}",
        "type": kind,
        "server-crt": site.certificate,
        "server-key": site.key,
        "tokens": site.tokens,
        "state-dir": state,
        "allow": f"{HOST}/32:1024-65535",
        "drain": "0s",
        "log-format": "json",
    }
    arguments = [f"--{option}={value}" for option, value in options.items()]
    return [sys.executable, "-m", "s2cs", "serve", "--plaintext", *arguments]


def start(stack: ExitStack, command: Sequence[str], stdout: int = subprocess.DEVNULL) -> "subprocess.Popen[str]":
    """Start a program that ends with `stack`."""
    environment = {**os.environ, PARENT: str(os.getpid())}
    process = subprocess.Popen(command, stdout=stdout, stderr=subprocess.DEVNULL, text=True, env=environment)
    stack.callback(end, process)
    return process


def end(process: "subprocess.Popen[str]") -> None:
    """End a program, at the latest by force."""
    process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout:
        process.stdout.close()


def serving(server: "subprocess.Popen[str]") -> str:
    """Return the address of a control server, once it serves."""
    line = ""
    for line in server.stdout or ():
        event = json.loads(line)
        if event["event"] == "serving":
            return str(event["address"])
    raise UserError(f"a control server did not start: {line.strip() or server.wait()}")


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server((HOST, 0)) as server:
        return int(server.getsockname()[1])


def listen(stack: ExitStack, command: Sequence[str], port: int) -> None:
    """Start a program and wait until it listens on `port`."""
    process, give_up = start(stack, command), time.monotonic() + PATIENCE
    while port not in proc.listening_ports(process.pid):
        if process.poll() is not None or time.monotonic() > give_up:
            raise UserError(f"{command[0]} does not listen: exit code {process.poll()}")
        time.sleep(0.01)


def answer(port: int) -> None:
    """Answer each request for a number of bytes with so many (a ZeroMQ service)."""
    with zmq.Context() as context, context.socket(zmq.REP) as service:
        service.bind(f"tcp://{HOST}:{port}")
        answers = {size: os.urandom(size) for size in EXCHANGES}
        while True:
            service.send(answers[int(service.recv())], copy=False)


def start_service(stack: ExitStack) -> Addresses:
    """Start the service of messages; return where iperf3 will listen and where the service does."""
    port, messages = free_port(), free_port()
    service = multiprocessing.get_context("spawn").Process(target=answer, args=(messages,), daemon=True)
    service.start()
    stack.callback(service.join)
    stack.callback(service.terminate)
    return f"{HOST}:{port}", f"{HOST}:{messages}"


def scistream_haproxy(_folder: Path, listener: int, target: str, _side: str) -> tuple[str, str]:
    """Return program and settings of SciStream's HAProxy."""
    times = "timeout connect 5000\n timeout client 50000\n timeout server 50000"
    hop = f"frontend in\n bind {HOST}:{listener}\n default_backend out\nbackend out\n server target {target}\n"
    return "haproxy", f"defaults\n mode tcp\n {times}\n{hop}"


def scistream_stunnel(folder: Path, listener: int, target: str, side: str) -> tuple[str, str]:
    """Return program and settings of SciStream's stunnel, its log at the level that writes little."""
    key = folder / "stunnel.psk"
    key.write_text(f"client1:{'5' * 32}\n")
    key.chmod(0o600)
    options = f"PSKsecrets = {key}\nsecurityLevel = 0\nsslVersionMax = TLSv1.2\nforeground = yes\ndebug = err\npid =\n"
    hop = f"[hop]\nclient = {side}\naccept = {HOST}:{listener}\nconnect = {target}\nciphers = eNULL\n"
    return "stunnel", options + hop


PEERS = {
    "SciStream's haproxy, plaintext": scistream_haproxy,
    "SciStream's stunnel, not encrypted": scistream_stunnel,
}


def start_peer(
    stack: ExitStack, folder: Path, settings: Callable[[Path, int, str, str], tuple[str, str]], targets: Addresses
) -> Addresses:
    """Start two hops to each target; return the outer listeners."""
    listeners = []
    for target in targets:
        onward = target
        for side in ("no", "yes"):  # producer's (TLS server), consumer's
            port = free_port()
            program, text = settings(folder, port, onward, side)
            path = folder / f"peer-{port}.conf"
            path.write_text(text)
            options = ["-f", str(path)] if program == "haproxy" else [str(path)]
            listen(stack, [find_program(program, program), *options], port)
            onward = f"{HOST}:{port}"
        listeners.append(onward)
    return listeners[0], listeners[1]


def throughput(address: str, service: str, direction: str) -> float:
    """Return GBit/s in `direction` over one connection to `address`.

    The service is a new one: iperf3 learns late that a proxied test is over, and refuses others until then.
    """
    host, port = address.split(":")
    own = service.split(":")[1]
    with ExitStack() as stack:
        listen(stack, ["iperf3", "-s", "-B", HOST, "-p", own], int(own))
        command = ["iperf3", "-c", host, "-p", port, *DIRECTIONS[direction], "-t", str(SECONDS), "-J"]
        report = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    if "error" in report:
        raise UserError(f"iperf3 to {address}: {report['error']}")
    return float(report["end"]["sum_received"]["bits_per_second"]) / 1e9


def show_throughputs(routes: dict[str, Addresses]) -> None:
    """Measure plain routes both ways and encrypted ones the stream's way, each against direct the same way."""
    plain = {name: route for name, route in routes.items() if name == DIRECT or name.endswith("plaintext")}
    stream, *_ = DIRECTIONS
    for direction in DIRECTIONS:
        show_throughput(plain, direction, PLAIN_ROUNDS)
    show_throughput({name: routes[name] for name in routes if name == DIRECT or name not in plain}, stream, ROUNDS)


def show_throughput(routes: dict[str, Addresses], direction: str, rounds: int) -> None:
    """Measure, and print a table."""
    rates: dict[str, list[float]] = {name: [] for name in routes}
    for _ in range(rounds):
        for name in shuffled(routes):
            rates[name].append(throughput(routes[name][0], routes[DIRECT][0], direction))
    print(f"Throughput, {direction}, one connection: median of {rounds} interleaved rounds of {SECONDS} s")
    for name, values in rates.items():
        ratios = [value / direct for value, direct in zip(values, rates[DIRECT], strict=True)]
        spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
        print(
            f"  {name:34} {statistics.median(values):7.2f} GBit/s   {statistics.median(ratios):5.2f} x direct {spread}"
        )


def show_latency(routes: dict[str, Addresses]) -> None:
    """Measure, and print a table for each size of message."""
    with zmq.Context() as context, ExitStack() as stack:
        sockets = {name: stack.enter_context(context.socket(zmq.REQ)) for name in routes}
        for name, client in sockets.items():
            client.setsockopt(zmq.LINGER, 0)
            client.setsockopt(zmq.RCVTIMEO, int(1000 * PATIENCE))
            client.connect(f"tcp://{routes[name][1]}")
        for size, count in EXCHANGES.items():
            show_latency_of(sockets, size, count)


def show_latency_of(sockets: "dict[str, zmq.Socket[bytes]]", size: int, count: int) -> None:
    """Measure exchanges with answers of `size` bytes, and print a table."""
    times: dict[str, list[float]] = {name: [] for name in sockets}
    for i in range(count + 5):
        for name in shuffled(sockets):
            client = sockets[name]
            began = time.perf_counter()
            client.send(str(size).encode())
            client.recv(copy=False)
            if i >= 5:  # the first ones connect and warm up
                times[name].append(1000 * (time.perf_counter() - began))
    print(f"Latency, ZeroMQ request and answer of {size} B: {count} interleaved rounds, ms")
    direct = times[DIRECT]
    for name, values in times.items():
        p50, p99 = quantile(values, 0.5), quantile(values, 0.99)
        added = f"added {p50 - quantile(direct, 0.5):7.3f} {p99 - quantile(direct, 0.99):7.3f}"
        print(f"  {name:34} p50 {p50:8.3f}  p99 {p99:8.3f}   {added}")


def shuffled(names: Iterable[str]) -> list[str]:
    """Return the names in a new order: who comes after a slow one must not always be the same."""
    order = list(names)
    random.shuffle(order)
    return order


def quantile(values: Sequence[float], part: float) -> float:
    """Return the least value that `part` of all do not exceed."""
    return sorted(values)[math.ceil(part * len(values)) - 1]


def show_openings(sites: Sequence[Gateways], site: Site, token_file: Path, target: str) -> None:
    """Measure how long a tunnel takes to open, and print a table."""
    floor = [timed(partial(run, [sys.executable, "-c", "import grpc"])) for _ in range(OPENINGS)]
    print(f"Time to open an encrypted tunnel (s2uc tries it, too): median of {OPENINGS}, ms")
    print(f"  {'python -c import grpc':34} {statistics.median(floor):7.0f}")
    for both in sites:
        command = [sys.executable, "-m", "s2cs.user", "connect", "--detach", f"--target={target}", f"--ca={site.ca}"]
        command += [f"--producer-s2cs={both.addresses[0]}", f"--consumer-s2cs={both.addresses[1]}"]
        command += [f"--token-file={token_file}"]
        whole, warm = [], []
        for i in range(OPENINGS):
            uid = f"bench-{i}"
            whole.append(timed(partial(run, [*command, f"--uid={uid}"])))
            both.release(uid)
            tunnel = Tunnel(both.producer, both.consumer, [target])
            warm.append(timed(tunnel.open))
            tunnel.release()
        medians = statistics.median(whole), statistics.median(warm)
        print(f"  {f's2uc connect --detach, {both.kind}':34} {medians[0]:7.0f}   Tunnel.open alone {medians[1]:6.0f}")


def run(command: Sequence[str]) -> None:
    """Run a program to its end."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def timed(work: Callable[[], None]) -> float:
    """Return the milliseconds that `work` takes."""
    began = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - began)


def open_routes(
    stack: ExitStack, folder: Path, sites: dict[str, Gateways], services: Addresses
) -> dict[str, Addresses]:
    """Open every way to the services that can be had here, and say which cannot."""

    def tunnel(kind: str, encrypted: bool) -> Addresses:
        both = sites[kind]
        opened = stack.enter_context(Tunnel(both.producer, both.consumer, services, encrypted=encrypted))
        return opened.listeners[0], opened.listeners[1]

    ways = {name: partial(tunnel, *route) for name, route in ROUTES.items()}
    ways |= {name: partial(start_peer, stack, folder, settings, services) for name, settings in PEERS.items()}
    routes = {DIRECT: services}
    for name, way in ways.items():
        try:
            routes[name] = way()
        except UserError as error:
            print(f"  skipped {name}: {error}")
    return routes


def main() -> None:
    """Measure, and print tables."""
    if not shutil.which("iperf3"):
        print("Tunnels are not measured: iperf3 is not installed (apt install iperf3)")
        return
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-tunnel-")))
        site, token = init_site(folder / "site", [HOST])
        token_file = folder / "token"
        token_file.touch(mode=0o600)
        token_file.write_text(token)
        services = start_service(stack)
        kinds = dict.fromkeys(kind for kind, _ in ROUTES.values())
        sites = {kind: Gateways(stack, folder, site, token, kind) for kind in kinds}
        for both in sites.values():
            both.meet()
        print(f"Tunnels over two gateways on loopback, {os.cpu_count()} cores")
        with ExitStack() as tunnels:
            routes = open_routes(tunnels, folder, sites, services)
            show_throughputs(routes)
            show_latency(routes)
        opened = {ROUTES[name][0] for name in routes if name in ROUTES}
        show_openings([sites[kind] for kind in sites if kind in opened], site, token_file, services[1])


if __name__ == "__main__":
    main()
