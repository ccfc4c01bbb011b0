"""`delivery download`: asks for files, waits for the ticket's turn, fetches, verifies and unpacks.

What was asked for is noted in the folder, and what has come stays there: the same command, given again, goes on with
the same ticket at the byte where it was cut.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx

from delivery.archive.parcels import unpack, verify
from delivery.asking import auth_of, checked, patiently
from delivery.progress import progress_bar
from delivery.tickets.models import OVER, State, Status, Volume
from delivery.tickets.settings import DownloadSettings
from ministream.base.errors import UserError
from ministream.base.files import explained, whole_or_absent
from ministream.base.log import get_logger

T = TypeVar("T")


class Anew(Exception):  # noqa: N818 - says what happens
    """The result is being prepared anew: wait again."""


def main(settings: DownloadSettings) -> int:
    """Download what the settings name."""
    with explained(settings.output):
        settings.output.mkdir(parents=True, exist_ok=True)
    with httpx.Client(
        base_url=settings.service.rstrip("/"), auth=auth_of(settings), timeout=settings.timeout
    ) as client:
        Download(settings, client).run()
    return 0


class Download:
    """One run of the command.

    Parameters
    ----------
    settings
        What to fetch, and how.
    client
        Knows the service's address, and who asks.
    """

    def __init__(self, settings: DownloadSettings, client: httpx.Client) -> None:
        self._settings, self._client = settings, client
        self._note = settings.output / ".delivery-download.json"

    def run(self) -> None:
        """Do it all; raises UserError if it can't be done."""
        ticket = self._ticket_of_before() or self._ask()
        while True:
            try:
                status = self._wait(ticket)
                for volume in status.volumes:
                    self._fetch(ticket, volume)
                break
            except Anew:
                for volume in status.volumes:
                    self._part(volume).unlink(missing_ok=True)
                get_logger().info("the files have changed; waiting for them to be prepared anew")
        self._note.unlink(missing_ok=True)
        if status.source == "deleted":
            get_logger().warning("the service has deleted these files since; this is the copy it had")

    # The ticket

    def _ask(self) -> str:
        request = self._request()
        answer = self._patiently(lambda: self._client.post("/download", json=request))
        ticket = str(checked(answer).json()["ticketId"])
        with whole_or_absent(self._note) as aside:
            aside.write_text(json.dumps({"service": self._settings.service, "request": request, "ticket": ticket}))
        get_logger().info("asked", ticket=ticket)
        return ticket

    def _ticket_of_before(self) -> str | None:
        """Return the ticket of a run that was cut, if it was for the same and is still good."""
        try:
            note = json.loads(self._note.read_text())
            same = (note["service"], note["request"]) == (self._settings.service, self._request())
            ticket = str(note["ticket"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        status = self._status(ticket) if same else None
        return ticket if status and status.state not in OVER else None

    def _request(self) -> dict[str, Any]:
        chosen = self._settings.model_dump(include={"priority", "keep", "volume", "prepare"})
        return {"paths": list(self._settings.paths), **chosen}

    def _status(self, ticket: str) -> Status | None:
        accept = {"Accept": "application/json"}
        answer = self._patiently(lambda: self._client.get(f"/ticket/{ticket}/status", headers=accept))
        return None if answer.status_code == 404 else Status.model_validate(checked(answer).json())

    def _wait(self, ticket: str) -> Status:
        """Follow a ticket until it is ready, and return its status then."""
        seen = 0

        def follow() -> None:
            nonlocal seen
            headers = {"Accept": "text/event-stream", "Last-Event-ID": str(seen)}
            with self._client.stream("GET", f"/ticket/{ticket}/status", headers=headers) as answer:
                for seen, event in _events(checked(answer)):  # noqa: B007 - read if the line is cut
                    bar.update(task, total=event.get("total"), completed=event.get("done", 0))
                    if event["state"] in (State.READY, *OVER):
                        return

        while True:
            with progress_bar() as bar:
                task = bar.add_task("waiting", total=None)
                self._patiently(follow)
            status = self._status(ticket)
            if status is None or status.state in OVER:
                raise UserError(f"ticket {ticket} is {status.state}: {status.reason}" if status else "no such ticket")
            if status.state == State.READY:
                return status

    # Its result

    def _fetch(self, ticket: str, volume: Volume) -> None:
        """Fetch a volume, or the rest of it; verify it, and put it where it belongs."""
        part = self._part(volume)
        self._patiently(lambda: self._fetch_rest(ticket, volume, part), lambda: _held(part))
        try:
            self._verify(part, volume)
        except UserError:
            part.unlink()  # to be gone on with by nobody
            raise
        if self._settings.unpack:
            count = unpack(part, self._settings.output)
            part.unlink()
            get_logger().info("fetched", files=count, bytes=volume.length)
        else:
            part.rename(self._settings.output / Path(volume.name).name)
            get_logger().info("fetched", archive=volume.name, bytes=volume.length)

    def _part(self, volume: Volume) -> Path:
        return self._settings.output / f".{Path(volume.name).name}.part"

    def _fetch_rest(self, ticket: str, volume: Volume, part: Path) -> None:
        held = _held(part)
        if held == volume.length:
            return
        free = shutil.disk_usage(part.parent).free
        if volume.length - held > free:
            raise UserError(f"{part.parent}: {volume.length - held} more bytes are needed, {free} are free; make room")
        headers = {"Accept-Encoding": "identity"}
        if held:
            headers |= {"Range": f"bytes={held}-", "If-Range": volume.etag}
        number = httpx.URL(volume.url).params["volume"]
        place = f"/ticket/{ticket}/result?volume={number}"
        with self._client.stream("GET", place, headers=headers) as answer:
            if answer.status_code == 409:
                raise Anew
            whole = checked(answer).status_code == 200
            with explained(part), part.open("wb" if whole else "ab", buffering=0) as file, progress_bar() as bar:
                task = bar.add_task(volume.name, total=volume.length, completed=0 if whole else held)
                for block in answer.iter_raw():
                    file.write(block)
                    bar.advance(task, len(block))

    def _verify(self, part: Path, volume: Volume) -> None:
        if volume.sha256:
            with part.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != volume.sha256:
                raise UserError(f"{volume.name} did not arrive as it was sent; it is deleted: fetch it again")
        else:
            verify(part)

    def _patiently(self, action: Callable[[], T], progress: Callable[[], int] = lambda: 0) -> T:
        return patiently(action, self._settings.service, self._settings.patience, progress)


def _events(answer: httpx.Response) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield number and data of each event in a stream of them."""
    number = 0
    for line in answer.iter_lines():
        if line.startswith("id: "):
            number = int(line[4:])
        elif line.startswith("data: "):
            yield number, json.loads(line[6:])


def _held(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0
