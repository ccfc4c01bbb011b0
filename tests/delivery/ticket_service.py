"""A ticket service as a process of its own, and somebody who asks it."""

import io
import os
import sqlite3
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from delivery.archive.layout import MANIFEST
from delivery.people.tokens import TokenFile
from tests.delivery.sync_programs import PATIENCE, Program, until
from tests.delivery.web_service import WebService

PASSWORD = "correct horse battery"
HOUR = 3600.0


class Service(WebService):
    """A ticket service over the folder `files`; its state is in `folder`, and outlives it."""

    def __init__(self, folder: Path, *options: object, database: str = "") -> None:
        self.files, self.store = folder / "files", folder / "store"
        self.files.mkdir(exist_ok=True)
        token = TokenFile(folder / "tokens").add(f"op{os.urandom(3).hex()}", HOUR)
        command = [
            "-m", "delivery", "tickets", "--port", 0, "--root", self.files, "--store", self.store, "--settle", 0,
            "--database", database or f"sqlite:///{folder}/tickets.db", "--tokens", folder / "tokens", *options,
        ]  # fmt: skip
        super().__init__(command, folder, token, {"Accept": "application/json"})

    def restart(self) -> None:
        """Kill it and start it anew at the same address; clients stay, and find their connections cut."""
        self.process.kill()
        address = httpx.URL(self.url)
        port = self._command.index("--port") + 1
        self.process = Program(*self._command[:port], address.port, *self._command[port + 1 :], folder=self.folder)
        self.process.wait_for("serving +address=")

    def write(self, name: str, content: bytes | int) -> bytes:
        """Make a file, of random bytes if only their number is given."""
        content = os.urandom(content) if isinstance(content, int) else content
        path = self.files / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return content

    def ask(self, *paths: str, **request: Any) -> str:
        return accepted(self.operator.post("/download", json={"paths": paths, **request}))

    def status(self, ticket: str) -> dict[str, Any]:
        return self.operator.get(f"/ticket/{ticket}/status").raise_for_status().json()

    def until(self, ticket: str, *states: str, patience: float = PATIENCE) -> dict[str, Any]:
        """Wait until a ticket is in one of the states."""
        until(lambda: self.status(ticket)["state"] in states, f"{ticket} to be {states}", patience)
        return self.status(ticket)

    def fetch(self, ticket: str, **options: Any) -> httpx.Response:
        return self.operator.get(f"/ticket/{ticket}/result", **options)


@contextmanager
def ticket_service(folder: Path, *options: object, database: str = "") -> Iterator[Service]:
    """Run a service until the end of the block."""
    service = Service(folder, *options, database=database)
    try:
        yield service
    finally:
        service.kill()


def accepted(answer: httpx.Response) -> str:
    assert answer.status_code == 202, answer.text
    return answer.json()["ticketId"]


def contents(archive: bytes) -> dict[str, bytes]:
    """Return the files in an archive, but its manifest."""
    with zipfile.ZipFile(io.BytesIO(archive)) as parcel:
        assert parcel.testzip() is None
        return {name: parcel.read(name) for name in parcel.namelist() if name != MANIFEST}


def events(service: Service, ticket: str, last: int = 0, *, end: str = "ready") -> list[tuple[int, str]]:
    """Return number and state of a ticket's events until one with the state `end`."""
    found: list[tuple[int, str]] = []
    headers = {"Accept": "text/event-stream", "Last-Event-ID": str(last)}
    with service.operator.stream("GET", f"/ticket/{ticket}/status", headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("id: "):
                number = int(line[4:])
            if line.startswith("data: ") and '"done": ' not in line:  # how far it is, is not kept
                found.append((number, line.split('"state": "')[1].split('"')[0]))
                if found[-1][1] == end:
                    break
    return found


def sql(service: Service, statement: str, *values: object) -> None:
    """Change the database of a service under its feet: what else takes days."""
    with sqlite3.connect(service.folder / "tickets.db", timeout=30) as connection:
        connection.execute(statement, values)
    connection.close()
