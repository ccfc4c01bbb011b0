"""The sessions' file: what comes back after a restart, and what is refused."""

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ministream.base.errors import UserError
from s2cs.addresses import Address
from s2cs.sessions import Role, Session
from s2cs.store import ProcessRecord, SessionStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "sessions.sqlite"


def session(uid: str = "scan-1", created: float = 1000.0) -> Session:
    return Session(
        uid=uid,
        role=Role.PROD,
        owner="alice",
        num_conn=2,
        host="127.0.0.1",
        ports=range(5100, 5102),
        created=created,
        clock=lambda: created + 7,
    )


def streaming(uid: str = "scan-1") -> Session:
    made = session(uid)
    made.lease = 60.0
    made.greet()
    made.open((Address("192.168.100.10", 5560), Address("fd00::10", 5561)), "-----BEGIN CERTIFICATE-----\n…\n")
    made.note_restart("signal 9")
    return made


def test_a_session_comes_back_whole_and_works_on(path: Path) -> None:
    record = ProcessRecord(pid=4711, started=123456)
    with SessionStore(path) as store:
        store.save(streaming(), record)
    with SessionStore(path) as store:
        [(found, process)] = store.load()
    assert found == streaming()
    assert process == record
    assert found.pairs() == streaming().pairs()
    found.release()


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    owner=st.text(st.characters(codec="utf-8")),
    reason=st.text(st.characters(codec="utf-8")),
    rate=st.integers(0, 2**63),
    times=st.tuples(*[st.floats(1.0, 1e11)] * 5),
    first=st.integers(1, 60000),
    count=st.integers(1, 5000),
)
def test_every_session_comes_back_as_it_was(
    path: Path, owner: str, reason: str, rate: int, times: tuple[float, ...], first: int, count: int
) -> None:
    made = Session(
        uid="scan-1",
        role=Role.CONS,
        owner=owner,
        num_conn=count,
        rate=rate,
        encrypted=True,
        kind="haproxy",
        host="::1",
        ports=range(first, first + count),
        created=times[0],
        deadline=times[1],
        lease=times[2],
        ends=times[3],
        idle=times[4],
    )
    made.fail(reason)
    with SessionStore(path) as store:
        store.save(made)
        assert store.load() == [(made, None)]


def test_saving_again_replaces_the_row(path: Path) -> None:
    with SessionStore(path) as store:
        made = session()
        store.save(made, ProcessRecord(pid=1, started=2))
        made.fail("the proxy refused its settings")
        store.save(made)
        [(found, process)] = store.load()
    assert found.reason == "the proxy refused its settings"
    assert process is None


def test_a_forgotten_session_is_gone_and_nothing_of_it_stays_in_the_files(path: Path) -> None:
    with SessionStore(path) as store:
        store.save(session("other"))
        store.save(session("secret-name"))
        store.forget("secret-name")
        store.forget("never-was")
        assert [found.uid for found, _ in store.load()] == ["other"]
    content = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert b"other" in content
    assert b"secret-name" not in content


def test_sessions_come_back_oldest_first(path: Path) -> None:
    with SessionStore(path) as store:
        for uid, created in (("b", 20.0), ("a", 10.0), ("c", 30.0)):
            store.save(session(uid, created))
        assert [found.uid for found, _ in store.load()] == ["a", "b", "c"]


def test_only_the_owner_may_read_any_of_the_files(path: Path) -> None:
    old = os.umask(0)
    try:
        with SessionStore(path) as store:
            store.save(session())
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    finally:
        os.umask(old)
    assert set(modes) >= {"sessions.sqlite", "sessions.sqlite-wal"}
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_folder_that_others_may_read_is_refused(path: Path) -> None:
    path.parent.mkdir(mode=0o755)
    with pytest.raises(UserError, match="chmod 700"):
        SessionStore(path)


def test_a_second_server_on_the_same_file_is_refused(path: Path) -> None:
    with SessionStore(path) as store:
        with pytest.raises(UserError, match="another control server uses it"):
            SessionStore(path)
        store.save(session())
    with SessionStore(path) as store:
        assert len(store.load()) == 1


WRITER = """
import sys
from pathlib import Path
from s2cs.sessions import Role, Session
from s2cs.store import ProcessRecord, SessionStore
store = SessionStore(Path(sys.argv[1]))
number = 0
while True:
    number += 1
    made = Session(uid="scan", role=Role.PROD, owner="x" * 50_000, num_conn=1, rate=number, host="h", ports=range(1, 2))
    store.save(made, ProcessRecord(pid=number))
    print(number, flush=True)
"""


def test_a_server_killed_while_it_writes_leaves_whole_rows(path: Path) -> None:
    for turn in range(3):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout
            for _ in range(20 + 7 * turn):
                written = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
            written = max([written, *map(int, writer.stdout.read().split())])
        with SessionStore(path) as store:
            [(found, process)] = store.load()
        assert process is not None
        assert found.rate == process.pid
        assert found.rate in (written, written + 1)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"uid": "a", "role": "PROD", "unknown": 1}'])
def test_a_row_that_cannot_be_read_is_reported_and_the_others_come_back(
    path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with SessionStore(path) as store:
        store.save(session("good"))
        store.save(session("bad", created=1.0))
    database = sqlite3.connect(path)
    with database:
        database.execute("UPDATE sessions SET session = ? WHERE uid = 'bad'", (text,))
    database.close()
    with SessionStore(path) as store:
        assert [found.uid for found, _ in store.load()] == ["good"]
    assert "a stored session cannot be read" in capsys.readouterr().out


def test_a_file_that_is_none_of_ours_is_refused_and_left_alone(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    path.write_bytes(b"no database at all " * 100)
    with pytest.raises(UserError, match="move it away"):
        SessionStore(path)
    assert path.read_bytes() == b"no database at all " * 100


def test_a_path_that_cannot_be_written_is_explained(path: Path) -> None:
    path.mkdir(mode=0o700, parents=True)
    path.parent.chmod(0o700)
    with pytest.raises(UserError, match="--state-dir"):
        SessionStore(path)
