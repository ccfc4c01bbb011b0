"""Lines that cut and alter, chunks twice and out of order, both sides killed with -9: each file comes whole, once."""

import os
import random
import socket
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from blake3 import blake3

from tests.delivery.intake_service import Intake, cut
from tests.delivery.sync_programs import Program, free_port, until

CHUNK, FILE = 64 << 10, 6 << 20
HEADERS = 1500
"""Bytes at the beginning of what comes at once that may be headers: altered ones would be other requests."""


class FaultyLine:
    """A way to an intake whose connections are cut, and whose bodies are altered, at random."""

    def __init__(self, port: int, chance: random.Random, faults: Counter[str]) -> None:
        self._port, self._chance, self._faults = port, chance, faults
        self.rate = 0.0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        with client, suppress(OSError), socket.create_connection(("127.0.0.1", self._port)) as server:
            answers = threading.Thread(target=self._pump, args=(server, client, False), daemon=True)
            answers.start()
            self._pump(client, server, True)
            answers.join()

    def _pump(self, source: socket.socket, sink: socket.socket, alter: bool) -> None:
        with suppress(OSError):
            while block := source.recv(1 << 16):
                if alter and self._chance.random() < self.rate:
                    if self._chance.random() < 0.5 or len(block) <= HEADERS:
                        self._faults["cut"] += 1
                        break
                    self._faults["altered"] += 1
                    at = self._chance.randrange(HEADERS, len(block))
                    block = block[:at] + bytes([block[at] ^ 1]) + block[at + 1 :]
                sink.sendall(block)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Trial:
    """An intake, a line, and a client that sends one file after the other until there were enough faults."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.faults: Counter[str] = Counter()
        self._folder, self._chance = folder, random.Random(seed)
        port = free_port()
        self.intake = Intake(folder / "intake", "--stall", "5 s", port=port)
        self._line = FaultyLine(port, random.Random(seed), self.faults)
        self._sent: dict[str, bytes] = {}

    def close(self) -> None:
        self._line.close()
        self.intake.kill()

    def send_one(self) -> None:
        """Send a file, amid faults, until the client says that it is there."""
        name = f"f{len(self._sent):04}.h5"
        content = self._sent[name] = self._chance.randbytes(self._chance.randrange(FILE // 2, FILE))
        (self._folder / name).write_bytes(content)
        self._line.rate = 0.04
        client = self._client(name)
        while client.process.poll() is None:
            time.sleep(self._chance.random() * 0.3)
            kind = self._chance.choice(["kill intake", "kill client", "repeated", "repeated"])
            if kind == "kill intake":
                self.intake.process.kill()
                self.intake.start()
            elif kind == "kill client":
                client.kill()
                client = self._client(name)
            else:
                self._repeat(content)
            self.faults[kind] += 1
        assert client.process.returncode == 0, client.said()
        until(lambda: self._stored(name), f"{name} to have its name")
        assert self._stored(name) == [content]

    def _client(self, name: str) -> Program:
        options = ["--chunk", CHUNK, "--settle", 0, "--patience", "60 s", "--token-file", self.intake.token_file]
        command = ["-m", "delivery", "upload", self._folder / name, "--to", self._line.url, *options]
        return Program(*command, folder=self._folder)

    def _repeat(self, content: bytes) -> None:
        """Send some chunks of the upload that is under way beside the client: twice, out of order, or another one's."""
        with suppress(httpx.TransportError):
            latest = self.intake.operator.get("/uploads").json()[:1]
            chunks = list(enumerate(cut(content, CHUNK)))
            for upload in latest:
                for number, chunk in self._chance.sample(chunks, 4):
                    digest = blake3(chunk).hexdigest()
                    sent = self._chance.choice([chunk, chunk[:-1] + bytes([chunk[-1] ^ 1]), chunk[:-1]])
                    headers = {"content-blake3": digest}
                    path = f"/upload/{upload['file_id']}/chunk/{number}"
                    answer = self.intake.operator.post(path, content=sent, headers=headers)
                    if upload["size"] == len(content):
                        assert answer.status_code == (201 if sent == chunk else 406 if len(sent) == len(chunk) else 400)

    def _stored(self, name: str) -> list[bytes]:
        stem = name.removesuffix(".h5")
        return [content for path, content in self.intake.files().items() if Path(path).name.startswith(stem)]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("faults", [20, pytest.param(1000, marks=pytest.mark.faults)])
def test_amid_faults_every_file_arrives_whole_and_once(tmp_path, faults):
    trial = Trial(tmp_path, seed=int(os.environ.get("SEED", faults)))
    try:
        while sum(trial.faults.values()) < faults or not {"kill intake", "kill client"} <= trial.faults.keys():
            trial.send_one()
        log = "".join(path.read_text() for path in (tmp_path / "intake").glob("*.log"))
        assert "internal fault" not in log
        uploads = trial.intake.operator.get("/uploads").json()
        assert {upload["state"] for upload in uploads} == {"stored"}
        assert not list((trial.intake.store / ".uploads").iterdir())
    finally:
        trial.close()
        sys.stdout.write(f"{dict(trial.faults)}\n")
