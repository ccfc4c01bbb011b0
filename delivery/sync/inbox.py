"""The broker's side of a disk: what is on its way, what has come, what is yet to be processed.

A batch is written to `part`, and `record.json` says which one it is and how far it has come; once verified, `part` is
renamed to the zip's own name. What hooks have not done yet has a mark in `todo`. Every step is one rename, or can be
done again: whenever the program is killed, the files alone tell where to go on.
"""

import fcntl
import os
import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ministream.base.errors import UserError
from ministream.base.files import explained, whole_or_absent

_NAME = re.compile(r"\w[\w.+ -]{0,200}")


class Record(BaseModel):
    """The batch that is under way.

    Parameters
    ----------
    batch, etag
        What the server calls it; empty from servers that give no such names.
    name
        The name that its zip is to have.
    length
        Of the zip in bytes, 0 if it is not known.
    stage
        "fetching" until the zip bears its name, then "received" until the server knows that.
    digests
        BLAKE3 by name of each file in it, once received.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch: str
    etag: str
    name: str
    length: int
    stage: Literal["fetching", "received"] = "fetching"
    digests: dict[str, str] = {}


class Inbox:
    """The folder that zips of one extension are written to; held by one broker at a time.

    Raises
    ------
    UserError
        If it can't be made, or another broker holds it.
    """

    def __init__(self, folder: Path, ext: str) -> None:
        self.folder, self._own = folder, folder / f".{ext}"
        self.part, self._record, self._todo = self._own / "part", self._own / "record.json", self._own / "todo"
        with explained(self._own):
            self._todo.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self._own / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise UserError(
                f"another broker writes {ext} files to {folder}; stop it, or give another folder"
            ) from error

        for left in self._own.glob(".record.json.*"):  # of a kill
            left.unlink()

    def close(self) -> None:
        """Let another broker have it."""
        os.close(self._lock)

    def record(self) -> Record | None:
        """Return what is known of the batch that is under way."""
        try:
            return Record.model_validate_json(self._record.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise UserError(
                f"{self._record} is not one that a broker wrote: delete {self._own} to begin anew"
            ) from error

    def held(self) -> int:
        """Return how many bytes of the batch are there."""
        try:
            return self.part.stat().st_size
        except FileNotFoundError:
            return 0

    def begin(self, batch: str, etag: str, name: str, length: int) -> Record:
        """Give up what was under way, and note a new batch."""
        self.part.unlink(missing_ok=True)
        return self._put(Record(batch=batch, etag=etag, name=self._free(name), length=length))

    def has_arrived(self, record: Record) -> bool:
        """Return whether the zip had got its name already when the program was killed."""
        return not self.part.exists() and self.path(record).exists()

    def path(self, record: Record) -> Path:
        """Return where a batch's zip ends up."""
        return self.folder / record.name

    def arrive(self, record: Record, digests: dict[str, str]) -> Record:
        """Give a verified zip its name, and hooks their work."""
        with explained(self.path(record)):
            if self.part.exists():
                self.part.rename(self.path(record))
            (self._todo / record.name).touch()
            _sync(self.folder)
            _sync(self._todo)
        return self._put(record.model_copy(update={"stage": "received", "digests": digests}))

    def finish(self) -> None:
        """Forget the batch that was under way."""
        with explained(self._record):
            self.part.unlink(missing_ok=True)
            self._record.unlink(missing_ok=True)

    def set_aside(self, record: Record) -> Path:
        """Keep what came damaged from a server that may not send it again, and return where it is."""
        place = self._own / f"damaged-{record.name}"
        with explained(place):
            self.part.replace(place)
        return place

    def todo(self) -> list[Path]:
        """Return the zips that hooks have not processed yet, oldest first."""
        marks = sorted(self._todo.iterdir(), key=lambda mark: mark.stat().st_mtime_ns)
        return [self.folder / mark.name for mark in marks]

    def done(self, zip_: Path) -> None:
        """Note that a zip has been processed."""
        (self._todo / zip_.name).unlink(missing_ok=True)

    def _put(self, record: Record) -> Record:
        with whole_or_absent(self._record) as aside:
            aside.write_text(record.model_dump_json())
        return record

    def _free(self, name: str) -> str:
        """Return `name`, or one made from it that no file has; what a server sends is not trusted to be a name."""
        path = Path(name if _NAME.fullmatch(name) else "batch.zip")
        taken = {path.name for folder in (self.folder, self._todo) for path in folder.iterdir()}
        number, free = 1, path.name
        while free in taken:
            number += 1
            free = f"{path.stem}-{number}{path.suffix}"
        return free


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
