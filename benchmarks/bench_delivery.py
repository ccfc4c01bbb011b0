"""How fast a zip of reconstructions is streamed: against the plain file, and against zipstream-ng, by the same server.

One server process on loopback offers the same files as our virtual zip, as one plain file of their total size through
the same class of response, and as a zip made by zipstream-ng (stored, of known length), in two ways: as its users send
it, by Starlette's StreamingResponse, and by our own sending of blocks, which is more than it gets elsewhere. Rounds are
interleaved, so that a noisy moment meets everybody; the client counts bytes and drops them.

Also measured: the time to the first byte of an archive of ten thousand files whose digests are known, from the request
on, that is with the look at the folder and at the database; and the most memory that the server took.
"""

import argparse
import multiprocessing
import resource
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import uvicorn
from results import Contestant, Result, compete, record
from starlette.responses import StreamingResponse
from zipstream import ZipStream

from delivery.archive.layout import Entry, Layout
from delivery.archive.stream import Archive
from delivery.database import open_database
from delivery.files.catalogue import Catalogue
from delivery.files.roots import Root
from delivery.web.app import create_app, tend_garbage
from delivery.web.ranges import RangeResponse
from ministream.base import log

FILES, FILE_SIZE = 32, 64 << 20
MANY = 10_000
ROUNDS = 5
OURS, PLAIN, PEER, PEER_HELPED = "ours", "plain file", "zipstream-ng", "zipstream-ng, sent by us"
ROUTES = {OURS: "/zip", PLAIN: "/plain", PEER: "/peer", PEER_HELPED: "/peer-helped"}


class Peer:
    """zipstream-ng's zip as content."""

    etag = '"peer"'

    def __init__(self, folder: Path) -> None:
        self._stream = ZipStream.from_path(folder, sized=True)
        self.length = len(self._stream)

    def read(self, _start: int, _stop: int) -> Iterator[bytes]:
        """Yield all of it."""
        return iter(self._stream)


class Plain:
    """One file as content, read as simply as can be."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.length, self.etag = file.stat().st_size, '"plain"'

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield its bytes."""
        with self._file.open("rb", buffering=0) as file:
            file.seek(start)
            while start < stop and (block := file.read(min(1 << 20, stop - start))):
                start += len(block)
                yield block


def serve(folder: Path, told: Connection) -> None:
    """Serve the folder's files in all ways; tell the port."""
    log.configure("bench", level="error")
    app = create_app("bench")
    tend_garbage()
    catalogue = Catalogue(open_database(f"sqlite:///{folder}/bench.db"))

    def archive(name: str) -> RangeResponse:
        root = Root(folder / name, settle=0)
        versions = catalogue.look(root, root.scan().files)
        return RangeResponse(Archive(Layout(root, [Entry(version.path, version) for version in versions])))

    app.get("/zip")(lambda: archive("large"))
    app.get("/many")(lambda: archive("many"))
    app.get("/plain")(lambda: RangeResponse(Plain(folder / "plain.h5")))
    app.get("/peer")(lambda: StreamingResponse(Peer(folder / "large").read(0, 0)))
    app.get("/peer-helped")(lambda: RangeResponse(Peer(folder / "large")))
    app.get("/memory")(lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    listening = socket.create_server(("127.0.0.1", 0))
    told.send(listening.getsockname()[1])
    uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False)).run(sockets=[listening])


def fetch(port: int, path: str, *, first: bool = False) -> tuple[int, float]:
    """Return the bytes of an answer and the seconds that they took; of its first byte alone where that is asked."""
    buffer = bytearray(1 << 20)
    received = 0
    with socket.create_connection(("127.0.0.1", port)) as connection:
        began = time.perf_counter()
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n".encode())
        while count := connection.recv_into(buffer):
            received += count
            if first:
                break
        return received, time.perf_counter() - began


def make_files(folder: Path, files: int, size: int, many: int) -> None:
    """Write reconstructions, as noise of 32-bit floats is one; the plain file as long as all; and many little files."""
    (folder / "large").mkdir()
    noise = np.random.default_rng(0)
    with (folder / "plain.h5").open("wb") as plain:
        for number in range(files):
            block = noise.standard_normal(size // 4, dtype=np.float32).tobytes()
            (folder / "large" / f"recon_{number:03}.h5").write_bytes(block)
            plain.write(block)
    for number in range(many):
        file = folder / "many" / f"scan_{number // 100:03}" / f"recon_{number:05}.h5"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(number.to_bytes(4, "little") * 64)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=FILES)
    parser.add_argument("--size", type=int, default=FILE_SIZE)
    parser.add_argument("--many", type=int, default=MANY)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-delivery-") as name:
        folder = Path(name)
        make_files(folder, given.files, given.size, given.many)
        told, tell = multiprocessing.Pipe(duplex=False)
        server = multiprocessing.get_context("spawn").Process(target=serve, args=(folder, tell), daemon=True)
        server.start()
        try:
            port = told.recv()
            report(port, given.rounds)
        finally:
            server.terminate()
            server.join()


def report(port: int, rounds: int) -> None:
    """Measure, print and record."""
    for path in ("/zip", "/many"):  # digests are taken, files are in memory
        fetch(port, path)
    firsts = [fetch(port, "/many", first=True)[1] * 1e3 for _ in range(max(rounds, 7))]
    held = memory(port)  # before the peers come
    contestants = {name: contestant(port, path) for name, path in ROUTES.items()}
    stream = compete("zip_stream", "MB/s", contestants, rounds)
    first = Result("zip_first_byte", statistics.median(firsts), "ms (smaller is better)")
    record([stream, first, Result("zip_server_memory", held / 1e6, "MB (smaller is better)")])


def contestant(port: int, path: str) -> Contestant:
    """Return one way of fetching all files; its work is what it brings, in MB."""
    return Contestant(lambda: fetch(port, path), fetch(port, path)[0] / 1e6)


def memory(port: int) -> int:
    """Return the most bytes that the server has held."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"GET /memory HTTP/1.0\r\n\r\n")
        with connection.makefile("rb") as answer:
            return int(answer.read().rpartition(b"\r\n")[2])


if __name__ == "__main__":
    sys.exit(main())
