"""What a control server must know after a restart: its sessions and their proxies, in an SQLite file.

One row a session, written as a whole in one transaction, so that a killed server finds either the old row or the new;
those that ended stay as long as their uids are refused. The file belongs to one server at a time: a second one on the
same folder is refused. It holds no keys, yet names who streams to where: its folder is for its user alone. A row that
cannot be read is reported and passed over, since the other sessions must come back all the same; its proxy is a
stranger then, and ended.
"""

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ministream.base.errors import UserError
from ministream.base.log import get_logger
from s2cs.addresses import parse_address
from s2cs.files import PRIVATE_FILE, make_private_folder
from s2cs.sessions import Role, Session, State

_TABLE = "CREATE TABLE IF NOT EXISTS sessions (uid TEXT PRIMARY KEY, changed REAL, session TEXT, process TEXT) STRICT"
_PLAIN = tuple(f.name for f in fields(Session) if f.name not in {"ports", "targets", "clock"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRecord:
    """What is needed to find a proxy again: its process, or its container.

    A process is known by number and start time, since numbers are given out again.
    """

    pid: int = 0
    started: int = 0
    """Field `starttime` of /proc/PID/stat: clock ticks since the machine was started."""
    container: str = ""


class SessionStore:
    """The sessions' file at `path`; a context manager, which `close` ends.

    Raises
    ------
    UserError
        If the file cannot be written, is no such file, or belongs to a server that runs.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        make_private_folder(path.parent)
        with self._explained():
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, PRIVATE_FILE))  # SQLite's side files take its mode
            self._database = sqlite3.connect(path, isolation_level=None, timeout=0.2)
            try:
                self._prepare()
            except sqlite3.Error:
                self._database.close()
                raise

    def __enter__(self) -> "SessionStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    def save(self, session: Session, process: ProcessRecord | None = None) -> None:
        """Write what `session` is now, and the proxy process that serves it, if any."""
        row = (session.uid, session.changed, _encode(session), json.dumps(asdict(process)) if process else None)
        with self._explained():
            self._database.execute("INSERT OR REPLACE INTO sessions VALUES (?, ?, ?, ?)", row)

    def load(self) -> list[tuple[Session, ProcessRecord | None]]:
        """Return all sessions, oldest change first, those that ended included: their proxies may still run."""
        with self._explained():
            rows = self._database.execute("SELECT uid, session, process FROM sessions ORDER BY changed").fetchall()
        found = []
        for uid, session, process in rows:
            try:
                found.append((_decode(session), ProcessRecord(**json.loads(process)) if process else None))
            except (ValueError, TypeError, KeyError) as error:
                get_logger().error("a stored session cannot be read", uid=uid, file=str(self._path), reason=str(error))
        return found

    def forget(self, uid: str) -> None:
        """Drop the session."""
        with self._explained():
            self._database.execute("DELETE FROM sessions WHERE uid = ?", (uid,))

    def _prepare(self) -> None:
        self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")  # a power cut ends the proxies, too
        self._database.execute("PRAGMA secure_delete = ON")
        self._database.execute("BEGIN EXCLUSIVE")
        self._database.execute(_TABLE)
        self._database.execute("COMMIT")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise UserError(f"sessions file {self._path}: {_advice(error)}") from error


def _advice(error: sqlite3.Error | OSError) -> str:
    if isinstance(error, OSError):
        return f"{error.strerror}; name a --state-dir that this user may write to"
    if not isinstance(error, sqlite3.OperationalError):
        return f"{error}; move it away and start again"
    if "locked" in str(error):
        return "another control server uses it; end that one, or name another --state-dir"
    return f"{error}; make room on that disk, and let this user write there"


def _encode(session: Session) -> str:
    values: dict[str, Any] = {name: getattr(session, name) for name in _PLAIN}
    values["ports"] = [session.ports.start, session.ports.stop]
    values["targets"] = [str(target) for target in session.targets]
    return json.dumps(values)


def _decode(text: str) -> Session:
    values = json.loads(text)
    values["role"], values["state"] = Role(values["role"]), State(values["state"])
    values["ports"] = range(*values["ports"])
    values["targets"] = tuple(parse_address(target) for target in values["targets"])
    return Session(**values)
