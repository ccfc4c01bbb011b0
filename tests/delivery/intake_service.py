"""An intake as a process of its own, and somebody who sends to it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from blake3 import blake3

from delivery.people.tokens import TokenFile
from tests.delivery.sync_programs import until
from tests.delivery.web_service import WebService

HOUR = 3600.0
PASSWORD = "correct horse battery"


class Intake(WebService):
    """An intake whose state is in `folder`, and outlives it."""

    def __init__(self, folder: Path, *options: object, database: str = "", port: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.store, self.token_file = folder / "store", folder / "token"
        token = TokenFile(folder / "tokens").add(f"op{os.urandom(3).hex()}", HOUR)
        self.token_file.write_text(token)
        command = [
            "-m", "delivery", "intake", "--port", port, "--store", self.store, "--spool", folder / "spool",
            "--spare", 0, "--settle", 0, "--tokens", folder / "tokens",
            "--database", database or f"sqlite:///{folder}/intake.db", *options,
        ]  # fmt: skip
        super().__init__(command, folder, token)

    def prepare(self, name: str, size: int | None, chunk_size: int = 1000, **more: Any) -> str:
        given = {"name": name, "chunk_size": chunk_size, **more} | ({} if size is None else {"size": size})
        return made(self.operator.post("/upload/prepare/", json=given))["file_id"]

    def put(self, upload: str, number: int, content: bytes, **headers: str) -> httpx.Response:
        given = headers or {"content-blake3": blake3(content).hexdigest()}
        given = {name.replace("_", "-"): value for name, value in given.items()}
        return self.operator.post(f"/upload/{upload}/chunk/{number}", content=content, headers=given)

    def finalise(self, upload: str, digest: str = "", **form: Any) -> httpx.Response:
        return self.operator.post(f"/upload/{upload}/finalise", data=form, headers={"content-tree": digest})

    def status(self, upload: str) -> dict[str, Any]:
        return self.operator.get(f"/upload/{upload}").raise_for_status().json()

    def until(self, upload: str, state: str) -> None:
        until(lambda: self.status(upload)["state"] == state, f"{upload} to be {state}")

    def files(self) -> dict[str, bytes]:
        """Return what was stored, by its path."""
        found = (path for path in self.store.rglob("*") if path.is_file())
        visible = ((path.relative_to(self.store), path) for path in found)
        return {str(name): path.read_bytes() for name, path in visible if name.parts[0] != ".uploads"}


@contextmanager
def intake(folder: Path, *options: object, **more: Any) -> Iterator[Intake]:
    """Run an intake until the end of the block."""
    service = Intake(folder, *options, **more)
    try:
        yield service
    finally:
        service.kill()


def made(answer: httpx.Response) -> Any:
    assert answer.status_code == 201, answer.text
    return answer.json()


def cut(content: bytes, size: int) -> list[bytes]:
    return [content[start : start + size] for start in range(0, len(content), size)]


def tree(content: bytes, size: int) -> str:
    """Return the tree digest as the documentation says it is made."""
    return blake3(b"".join(blake3(chunk).digest() for chunk in cut(content, size))).hexdigest()
