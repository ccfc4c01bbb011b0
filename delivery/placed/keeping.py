"""Register and disk together: in which order a file and its record change, so that a kill between the two is mended."""

import threading
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from delivery.placed.disk import Disk
from delivery.placed.messages import File
from delivery.placed.register import Register, State


class Keeper:
    """What a site keeps, for any number of threads.

    Bytes are on the disk before the record says so, and gone before the record forgets them: in between, what is
    aside bears the file's id, and `recover` knows from the record what becomes of it.
    """

    def __init__(self, register: Register, disk: Disk) -> None:
        self.register, self.disk = register, disk
        self._lock = threading.Lock()  # one file at a time changes its place, which takes some milliseconds

    def keep(self, aside: Path, file: File) -> None:
        """Keep an upload, whose bytes are whole in `aside`, and have it offered where else it belongs."""
        self.disk.flush(aside)
        with self._lock:
            self.disk.ready(aside, file.id)
            try:
                self.register.take(file)
            except DBAPIError:  # the record may be there all the same: then its bytes must be, too
                if self.register.find(file.id) is None:
                    self.disk.withdraw(file.id)
                raise
            self.disk.file(file.id)

    def keep_fetched(self, id_: str) -> None:
        """Keep a file that has been fetched, whole and verified."""
        self.disk.flush(self.disk.part(id_))
        with self._lock:
            self.disk.ready(self.disk.part(id_), id_)
            self.register.arrived(id_)
            self.disk.file(id_)

    def keep_found(self, id_: str) -> None:
        """Keep a file that was offered, and whose bytes lie here already, verified."""
        with self._lock:
            self.register.arrived(id_)
            self.disk.file(id_)

    def let_go(self, id_: str) -> None:
        """Delete a file that the other site holds, if it does not belong here; offer it no more."""
        with self._lock:
            entry = self.register.find(id_)
            if entry and entry.state is State.LEAVING:
                self.disk.delete(id_)
            self.register.settled(id_)

    def recover(self) -> None:
        """Mend what a kill left: finish what is on record, go on with fetches, delete the rest."""
        for path, id_, is_ready in self.disk.incoming():
            entry = self.register.find(id_) if id_ else None
            if entry and entry.state in (State.HERE, State.LEAVING) and is_ready:
                self.disk.file(id_)
            elif entry and entry.state is State.ARRIVING:
                path.replace(self.disk.part(id_))
            else:
                path.unlink()
