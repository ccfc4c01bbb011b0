"""Servers and brokers as processes of their own, a line that cuts, and folders to mirror."""

import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from delivery.archive.layout import MANIFEST

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60.0


class Program:
    """A process whose log is read."""

    def __init__(self, *command: object, folder: Path, environment: dict[str, str] | None = None) -> None:
        self.log = folder / f"{Path(str(command[0])).stem}-{time.monotonic_ns()}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, command)],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**os.environ, **(environment or {})},
            )

    def said(self) -> str:
        return self.log.read_text()

    def wait_for(self, pattern: str) -> str:
        """Return what the first group of `pattern` matches, once the log has it."""
        until(lambda: re.search(pattern, self.said()) or self.process.poll() is not None, pattern)
        match = re.search(pattern, self.said())
        assert match, self.said()
        return match.group(1) if match.groups() else match.group()

    def wait(self) -> int:
        return self.process.wait(PATIENCE)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.wait()


@contextmanager
def program(*command: object, folder: Path, environment: dict[str, str] | None = None) -> Iterator[Program]:
    """Run a program until the end of the block."""
    started = Program(*command, folder=folder, environment=environment)
    try:
        yield started
    finally:
        started.kill()


def until(condition: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def server_command(media: Path, *options: object, port: int = 0) -> list[object]:
    return [ROOT / "pydash.py", "--port", port, "--datadir", media, "--settle", 0, *options]


def broker_command(api: str, project: str, home: Path, *options: object) -> list[object]:
    fixed = ["--api", api, "--project", project, "--datadir", home, "--interval", 0.05]
    return [ROOT / "scheduled_request.py", *fixed, *options]


def address(server: Program) -> str:
    where = server.wait_for(r"serving  address=(\S+)")
    return f"http://{where}/stream"


def put(folder: Path, **contents: bytes) -> dict[str, bytes]:
    """Write files NAME.h5, each appearing whole; returns their contents by file name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        aside = folder / f".{name}"
        aside.write_bytes(content)
        aside.rename(folder / f"{name}.h5")
    return {f"{name}.h5": content for name, content in contents.items()}


def files(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files below a folder that are not hidden."""
    found = (path for path in folder.rglob("*") if path.is_file())
    visible = (path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    return {str(path.relative_to(folder)): path.read_bytes() for path in visible}


def packed(zip_: Path) -> dict[str, str]:
    """Return the SHA-256 of each file in a zip but its manifest, by name."""
    with zipfile.ZipFile(zip_) as archive:
        names = [name for name in archive.namelist() if name != MANIFEST]
        return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in names}


def bytes_sent(server: str) -> int:
    """Return how many bytes of answers the server at an address says that it has sent."""
    metrics = httpx.get(httpx.URL(server).join("/metrics")).text
    return int(float(re.search(r"^delivery_sent_bytes_total (\S+)", metrics, re.MULTILINE).group(1)))


class Line:
    """A way to a server, of connections that each end after `after(head)` bytes behind the head of their first answer.

    Little is on its way at a time: what the server has sent is about what has arrived.
    """

    def __init__(self, upstream: str, after: Callable[[bytes], int | None]) -> None:
        url = httpx.URL(upstream)
        self._upstream, self._after = (url.host, url.port), after
        self.carried: list[int] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.api = f"http://127.0.0.1:{self._listening.getsockname()[1]}{url.path}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            with client, socket.socket() as server:
                server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)  # must be set before it is connected
                server.connect(self._upstream)
                asking = threading.Thread(target=_pump, args=(client, server), daemon=True)
                asking.start()
                self._carry(server, client)
                for end in (client, server):
                    with suppress(OSError):
                        end.shutdown(socket.SHUT_RDWR)
                asking.join()

    def _carry(self, server: socket.socket, client: socket.socket) -> None:
        """Carry an answer to its end, or as far as it may go."""
        limit, head, body = None, b"", 0
        while block := server.recv(1 << 16):
            if b"\r\n\r\n" not in head:
                start = head + block
                head, gap, rest = start.partition(b"\r\n\r\n")
                if not gap:
                    head = start
                    continue
                head += gap
                client.sendall(head)
                if b" 20" in head[:12]:  # an answer that is to be cut
                    limit = self._after(head)
                block = rest
            if limit is not None:
                block = block[: limit - body]
            body += len(block)
            client.sendall(block)
            if body == limit:
                break
        self.carried.append(body)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while block := source.recv(1 << 16):
            sink.sendall(block)
        sink.shutdown(socket.SHUT_WR)
