"""How fast a file is uploaded and verified: against an unverified PUT to the same server, and against tuspyserver.

One server process on loopback takes one gigabyte: by our own client, in chunks on several lines, each with its digest,
up to the answer that says the whole is right and stored; and by routes of the same server that write what comes by one
PUT to a file and compare nothing: one of them as routes usually do, one from threads, as chunks are read. tuspyserver
runs in a process of its own, on the same web server, and compares nothing either; it gets the same bytes from tuspy in
chunks of the same size, after each of which it could go on as ours could, and in one PATCH, which is the fastest that
it can be given. The client reads the file, hashes and sends from this process, so that all of it costs processors of
the same machine.

Rounds are interleaved. What was stored is deleted after each, so that no disk is measured, but memory is: a virtual
machine that gives freed memory back to its host gets it anew for each file, at 1 to 3 s for a gigabyte. So the same
bytes are written by a bare loop as well: what no server can be faster than. Also measured: the most memory that our
server took, and how long it takes to finalise 10 GB.
"""

import argparse
import math
import multiprocessing
import os
import resource
import socket
import statistics
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import httpx
import uvicorn
from blake3 import blake3
from fastapi import FastAPI, Request
from results import Contestant, Result, compete, record
from sqlalchemy import insert
from tusclient.client import TusClient
from tuspyserver import create_tus_router

from delivery.database import open_database, writing
from delivery.upload.sender import Line, Sender, opened
from delivery.upload.sendfile import transport_to
from delivery.upload.service import make_app
from delivery.upload.settings import IntakeSettings
from delivery.upload.tables import chunks
from delivery.web.app import server_config
from delivery.web.bodies import limit_body
from delivery.web.socket_body import rest_of
from ministream.base import log

SIZE, ROUNDS = 1_000_000_000, 7
LINE = Line()
"""What `delivery upload` does when it is told nothing."""
CHUNK = LINE.chunk
BLOCK = 128 << 10
"""Bytes that the peers' clients hand to the system at a time: for larger ones, Linux looks longer for memory."""

TEN_GIGABYTES = 10_000_000_000


def run(config: uvicorn.Config, told: Connection) -> None:
    """Serve; tell the port."""
    listening = socket.create_server(("127.0.0.1", 0))
    told.send(listening.getsockname()[1])
    uvicorn.Server(config).run(sockets=[listening])


def serve_ours(folder: Path, told: Connection) -> None:
    """Serve our intake, and a PUT that verifies nothing."""
    log.configure("bench", level="error")
    settings = IntakeSettings(
        database=f"sqlite:///{folder}/intake.db", store=str(folder / "store"), spool=folder / "spool",
        insecure_no_auth=True,
    )  # fmt: skip
    app = make_app(settings)

    @app.put("/plain")
    async def plain(request: Request) -> int:
        limit_body(request, math.inf)
        with (folder / "plain").open("wb", buffering=0) as file:
            async for block in request.stream():
                file.write(block)
            return file.tell()

    @app.put("/threads")
    async def threads(request: Request) -> int:
        with (folder / "plain").open("wb", buffering=0) as file, rest_of(request) as rest:
            await rest.pour(file.write, stall=60)
            return file.tell()

    app.get("/memory")(lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    run(server_config(app), told)


def serve_peer(folder: Path, told: Connection) -> None:
    """Serve tuspyserver."""
    app = FastAPI()
    app.include_router(create_tus_router(prefix="files", files_dir=str(folder / "peer"), max_size=1 << 40))
    run(uvicorn.Config(app, log_config=None, access_log=False), told)


class Bench:
    """One file, and the ways to send it."""

    def __init__(self, folder: Path, ours: int, peer: int, size: int) -> None:
        self._folder, self._file, self._size = folder, folder / "scan.h5", size
        self._ours, self._peer = f"http://127.0.0.1:{ours}", peer
        self._port = ours
        with self._file.open("wb") as file:
            for _ in range(0, size, BLOCK):
                file.write(os.urandom(min(BLOCK, size - file.tell())))

    def verified(self) -> None:
        """Send it by our client."""
        transport = transport_to(self._ours)
        with httpx.Client(base_url=self._ours, timeout=60, transport=transport) as client, opened(self._file) as source:
            stored = Sender(client, LINE).send(source, "scan.h5")
        assert stored["state"] == "stored"

    def plain(self, route: str = "plain") -> None:
        """Send it by PUT."""
        head = f"PUT /{route} HTTP/1.1\r\nHost: bench\r\nContent-Length: {self._size}\r\nConnection: close\r\n\r\n"
        assert self._send(self._port, head).endswith(str(self._size).encode())

    def written(self) -> None:
        """Write it to another file, without a server."""
        copy = self._folder / "copy"
        with self._file.open("rb", buffering=0) as file, copy.open("wb", buffering=0) as target:
            while block := file.read(BLOCK):
                target.write(block)

    def by_peer(self) -> None:
        """Send it to tuspyserver."""
        tus = {"Tus-Resumable": "1.0.0"}
        address = f"http://127.0.0.1:{self._peer}/files"
        created = httpx.post(address, headers={**tus, "Upload-Length": str(self._size)}, follow_redirects=True)
        path = httpx.URL(created.raise_for_status().headers["location"]).path
        head = (
            f"PATCH {path} HTTP/1.1\r\nHost: bench\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\nConnection: close\r\n"
            f"Content-Type: application/offset+octet-stream\r\nContent-Length: {self._size}\r\n\r\n"
        )
        assert f"upload-offset: {self._size}".encode() in self._send(self._peer, head).lower()

    def by_peer_in_chunks(self) -> None:
        """Send it to tuspyserver by its client, tuspy, which could go on after each chunk, as ours can."""
        with self._file.open("rb") as file:
            client = TusClient(f"http://127.0.0.1:{self._peer}/files/")
            client.uploader(file_stream=file, chunk_size=CHUNK).upload()

    def tidy(self) -> None:
        """Delete what was stored."""
        for place in ("store", "peer", "plain", "copy"):
            for left in [self._folder / place, *(self._folder / place).rglob("*")]:
                if left.is_file():
                    left.unlink()

    def _send(self, port: int, head: str) -> bytes:
        with socket.create_connection(("127.0.0.1", port)) as line, self._file.open("rb", buffering=0) as file:
            line.sendall(head.encode())
            while block := file.read(BLOCK):
                line.sendall(block)
            with line.makefile("rb") as answer:
                return answer.read()

    def finalise(self) -> float:
        """Return the seconds that finalising 10 GB takes, whose chunks are entered as if they had come."""
        count, rest = divmod(TEN_GIGABYTES, CHUNK)
        leaves = [blake3(bytes(CHUNK)).digest()] * count + [blake3(bytes(rest)).digest()]
        given = {"name": "ten.h5", "size": TEN_GIGABYTES, "chunk_size": CHUNK, "digest": "tree"}
        with httpx.Client(base_url=self._ours, timeout=60) as client:
            upload = client.post("/upload/prepare/", json=given).raise_for_status().json()["file_id"]
            rows = [
                {"upload": upload, "number": number, "length": CHUNK if number < count else rest, "blake3": leaf}
                for number, leaf in enumerate(leaves)
            ]
            engine = open_database(f"sqlite:///{self._folder}/intake.db")
            with writing(engine) as connection:
                connection.execute(insert(chunks), rows)
            engine.dispose()
            digest = blake3(b"".join(leaves)).hexdigest()
            answer = client.post(f"/upload/{upload}/finalise", headers={"content-tree": digest}).raise_for_status()
        self.tidy()
        return answer.elapsed.total_seconds()

    def memory(self) -> int:
        """Return the most bytes that our server has held."""
        return int(httpx.get(f"{self._ours}/memory").text)


def started(serve: Callable[[Path, Connection], None], folder: Path) -> tuple[multiprocessing.Process, int]:
    """Start a server and return it with its port."""
    told, tell = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(folder, tell), daemon=True)
    process.start()
    return process, told.recv()


def measure(bench: Bench, size: int, rounds: int) -> list[Result]:
    """Return what was measured."""
    contestants = {
        "ours": Contestant(bench.verified, size / 1e6, bench.tidy),
        "unverified PUT": Contestant(bench.plain, size / 1e6, bench.tidy),
        "unverified PUT, read by threads": Contestant(lambda: bench.plain("threads"), size / 1e6, bench.tidy),
        "tuspyserver, by tuspy in chunks": Contestant(bench.by_peer_in_chunks, size / 1e6, bench.tidy),
        "tuspyserver, one PATCH": Contestant(bench.by_peer, size / 1e6, bench.tidy),
        "file written without a server": Contestant(bench.written, size / 1e6, bench.tidy),
    }
    verified = compete("upload_verified", "MB/s", contestants, rounds)
    finals = statistics.median(bench.finalise() for _ in range(5))
    return [
        verified,
        Result("upload_finalise_10GB", finals * 1e3, "ms (smaller is better)"),
        Result("upload_server_memory", bench.memory() / 1e6, "MB (smaller is better)"),
    ]


def main() -> int:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=SIZE)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-upload-") as name:
        folder = Path(name)
        servers = [started(serve, folder) for serve in (serve_ours, serve_peer)]
        try:
            results = measure(Bench(folder, servers[0][1], servers[1][1], given.size), given.size, given.rounds)
        finally:
            for process, _ in servers:
                process.terminate()
                process.join()
    record(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
