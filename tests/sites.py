"""Sites as their operators run them, the user's client as a program, and services to reach."""

import ast
import contextlib
import functools
import json
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from s2cs import logins
from s2cs.client import Gateway
from s2cs.dataservers import proc
from tests.ports import some_port


@contextlib.contextmanager
def running(arguments: list[str], **environment: str):
    """Run s2uc as a program; end it in any case."""
    process = subprocess.Popen(
        [sys.executable, "-m", "s2cs.user", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


class Site:
    """A gateway as its operator runs it: a control server as a program, its CA and a token of its own.

    Its proxies listen on `ports`; `changes` are options of `s2cs serve` without their dashes, such as `lease="10"`.
    """

    def __init__(self, folder: Path, ports: range, **changes: str) -> None:
        program = str(Path(sys.executable).with_name("s2cs"))
        made = subprocess.run(
            [program, "init", "127.0.0.1", "--folder", str(folder)], capture_output=True, text=True, check=True
        )
        self.token, self.ca = made.stdout.strip(), folder / "ca.crt"
        self.state, self.log = folder / "state", folder / "log"
        options = {
            "listener_ip": "127.0.0.1",
            "port_range": f"{ports[0]}-{ports[-1]}",
            "server_crt": str(folder / "server.crt"),
            "server_key": str(folder / "server.key"),
            "tokens": str(folder / "tokens.json"),
            "allow": "127.0.0.0/8:1-65535",
            "state_dir": str(self.state),
            "lease": "60",
            "log_format": "json",
            "drain": "0",
        }
        words = [f"--{name.replace('_', '-')}={value}" for name, value in (options | changes).items()]
        self._command = [program, *words, "--plaintext"]
        self._begin(port=0)

    def _begin(self, port: int) -> None:
        with self.log.open("w") as log:
            self.process = subprocess.Popen([*self._command, f"--port={port}"], stdout=log)

    @functools.cached_property
    def address(self) -> str:
        """Where it serves, once it does; the same after it has come back."""
        return self.wait_until_it_serves()

    def wait_until_it_serves(self) -> str:
        while not (served := [e for e in self.events() if "address" in e]):
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.02)
        return served[0]["address"]

    def events(self) -> list[dict[str, Any]]:
        """Return what the server has logged since it began; a last line that is not whole is left out."""
        return [json.loads(line) for line in self.log.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def kill(self) -> None:
        """End the server without a word to it."""
        self.process.kill()
        self.process.wait()

    def come_back(self) -> None:
        """Begin to serve again, after `kill`, with the same words on the same port."""
        self._begin(int(self.address.rpartition(":")[2]))

    def end(self) -> int:
        """End the server in order; return its exit code."""
        self.process.terminate()
        return self.process.wait(60)

    def clear(self) -> None:
        """End whatever a test that failed has left of the server and its proxies."""
        self.kill()
        for pid in proc.members(self.state):
            os.kill(pid, signal.SIGKILL)

    def gateway(self, name: str = "gateway") -> Gateway:
        return Gateway(self.address, name=name, ca=[self.ca], token=self.token)

    def sessions(self) -> list[str]:
        """Return the uids of the live sessions."""
        with self.gateway() as gateway:
            return [session.uid for session in gateway.list()]


@contextlib.contextmanager
def two_sites(folder: Path, **changes: str):
    """The producer's site and the consumer's, each in a folder of its own; both end in order."""
    first = some_port(200)
    blocks = {"producer": range(first, first + 100), "consumer": range(first + 100, first + 200)}
    with contextlib.ExitStack() as stack:
        sites = []
        for name, ports in blocks.items():
            sites.append(Site(folder / name, ports, **changes))
            stack.callback(sites[-1].clear)
        yield sites
        assert [site.end() for site in sites] == [0, 0]


def log_in(sites: list[Site]) -> list[str]:
    """Store the tokens of the producer's site and the consumer's; return what `connect` needs to be given then."""
    for site in sites:
        logins.store(site.address, site.token)
    a, b = sites
    return ["--producer-s2cs", a.address, "--consumer-s2cs", b.address, "--ca", str(a.ca), "--ca", str(b.ca)]


@contextlib.contextmanager
def service(name: bytes):
    """A service that greets each client with its name, then echoes."""

    class Answer(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.sendall(name)
            with contextlib.suppress(ConnectionError):
                while data := self.request.recv(65536):
                    self.request.sendall(data)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def converse(listener: str, name: bytes) -> bytes:
    """Return what comes back through `listener` after the service's name."""
    host, port = listener.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection, connection.makefile("rwb") as stream:
        assert stream.read(len(name)) == name
        stream.write(b"a frame\n")
        stream.flush()
        return stream.readline()


def listeners_of(line: str) -> list[str]:
    return ast.literal_eval(line.removeprefix("Listeners: "))
