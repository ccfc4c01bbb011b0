"""`delivery upload`, as people call it: parallel, gone on with after kills, nothing sent twice."""

import os
import re
import signal
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from delivery.asking import auth_of
from delivery.files.version import SourceChanged
from delivery.upload.client import upload as upload_in_python
from delivery.upload.sender import FileSource, Line, Sender, opened
from delivery.upload.sendfile import transport_to
from delivery.upload.settings import UploadSettings
from ministream.base.errors import UserError
from tests.conftest import ROOT
from tests.delivery.intake_service import PASSWORD, intake, made, tree
from tests.delivery.sync_programs import Program, until

CHUNK = 64 << 10


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with intake(tmp_path_factory.mktemp("intake"), "--licence", "1 day") as running:
        yield running


def upload(service, *words: object, **more: object) -> Program:
    options = {"--to": service.url, "--token-file": service.token_file, "--chunk": CHUNK, "--settle": 0, **more}
    given = [word for option in options.items() if option[1] is not None for word in option]
    return Program("-m", "delivery", "upload", *words, *given, folder=service.folder)


def sent_chunks(service) -> int:
    """Return how many chunks the intake has been sent."""
    return len(re.findall(r"path=/upload/\w+/chunk/\d+  status=201", service.process.said()))


def stored(service, name: str) -> bytes:
    until(lambda: any(path.endswith(name) for path in service.files()), f"{name} to have its name")
    (found,) = [content for path, content in service.files().items() if path.endswith(name)]
    return found


def test_files_and_folders_are_sent_and_nothing_twice(service, tmp_path):
    folder = tmp_path / "scan_7"
    (folder / "deep").mkdir(parents=True)
    contents = {"scan_7/a b.h5": os.urandom(3 * CHUNK + 5), "scan_7/deep/größe.h5": os.urandom(10), "c.h5": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (folder / ".hidden").write_bytes(b"x")
    before = sent_chunks(service)
    for _ in range(2):
        done = upload(service, folder, tmp_path / "c.h5", **{"--below": "in/here"})
        assert done.wait() == 0, done.said()
        assert done.said().count("sent  file=") == 3
    assert sent_chunks(service) - before == 5
    assert {name: stored(service, f"in/here/{name}") for name in contents} == contents
    assert not [path for path in service.files() if "hidden" in path]


def test_the_example_of_the_documentation_works_and_needs_no_web_framework(service, tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/delivery.md").read_text(), re.DOTALL)
    contents = {"scan_7/a.h5": os.urandom(3 * CHUNK + 5), "recon.h5": os.urandom(CHUNK)}
    (tmp_path / "scan_7").mkdir()
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        os.utime(tmp_path / name, (0, 0))  # finished long ago
    (tmp_path / "token").write_text(service.token)
    script = f"import os, sys; os.chdir({str(tmp_path)!r})\n{example}\nassert 'fastapi' not in sys.modules"
    done = Program("-c", script.replace("http://127.0.0.1:8060", service.url), folder=tmp_path)
    assert done.wait() == 0, done.said()
    lines = [line.split() for line in done.said().splitlines()]
    assert {name: stored(service, f"beamline_2/{name}") for name in contents} == contents
    assert lines == [
        [next(path for path in service.files() if path.endswith(name)), str(len(content)), tree(content, Line().chunk)]
        for name, content in contents.items()
    ]


def test_in_python_progress_is_told_and_a_wrong_option_refused(service, tmp_path):
    (tmp_path / "told.h5").write_bytes(bytes(5 * CHUNK))
    counts: list[int] = []
    more = {"to": service.url, "token_file": service.token_file, "chunk": CHUNK, "settle": 0}
    (sent,) = upload_in_python(tmp_path / "told.h5", progress=counts.append, **more)
    assert (sent["state"], sum(counts)) == ("stored", 5 * CHUNK)
    with pytest.raises(ValueError, match="chnk"):
        upload_in_python(tmp_path / "told.h5", to=service.url, chnk=CHUNK)
    with pytest.raises(UserError, match=r"none\.h5: No such file"):
        upload_in_python(tmp_path / "none.h5", **more)


def test_a_client_that_was_killed_goes_on_where_it_was(service, tmp_path):
    content = os.urandom(200 * CHUNK)
    (tmp_path / "killed.h5").write_bytes(content)
    before = sent_chunks(service)
    options = {"to": service.url, "token_file": str(service.token_file), "chunk": CHUNK, "settle": 0}
    script = f"""
import os, signal
from delivery.upload.client import upload

left = [{20 * CHUNK}]

def die_under_way(sent):
    left[0] -= sent
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)

upload({str(tmp_path / "killed.h5")!r}, progress=die_under_way, **{options!r})
"""
    assert Program("-c", script, folder=tmp_path).wait() == -signal.SIGKILL
    assert 20 <= sent_chunks(service) - before < 200
    assert upload(service, tmp_path / "killed.h5").wait() == 0
    assert sent_chunks(service) - before <= 200 + 4  # those that were on their way
    assert stored(service, "killed.h5") == content


def test_what_is_there_from_another_file_is_not_sent(service, tmp_path):
    content = os.urandom(100 * CHUNK)
    for name, end in (("one.h5", b"1"), ("other.h5", b"2")):
        (tmp_path / name).write_bytes(content + end)
        before = sent_chunks(service)
        assert upload(service, tmp_path / name).wait() == 0
    assert sent_chunks(service) - before == 1
    assert stored(service, "other.h5") == content + b"2"


def test_people_send_by_name_and_password(service, tmp_path):
    (tmp_path / "password").write_text(PASSWORD)
    (tmp_path / "mine.h5").write_bytes(b"mine")
    made(httpx.post(f"{service.url}/register", json={"name": "ada", "password": PASSWORD}))
    more = {"--token-file": None, "--user": "ada", "--password-file": tmp_path / "password"}
    assert upload(service, tmp_path / "mine.h5", **more).wait() == 0
    assert service.files()["ada/mine.h5"] == b"mine"


def test_a_login_that_ends_on_the_way_is_renewed(service, tmp_path):
    path, content = tmp_path / "renewed.h5", os.urandom(6 * CHUNK)
    path.write_bytes(content)
    made(httpx.post(f"{service.url}/register", json={"name": "grace", "password": PASSWORD}))
    (tmp_path / "password").write_text(PASSWORD)
    given = UploadSettings(
        files=(str(path),), service=service.url, user="grace", password_file=tmp_path / "password"
    )  # fmt: skip
    ended: list[int] = []

    def end_logins(_bytes: int) -> None:
        with sqlite3.connect(service.folder / "intake.db", timeout=30) as database:
            ended.append(database.execute("DELETE FROM logins").rowcount)
        database.close()

    transport = transport_to(service.url)
    with httpx.Client(base_url=service.url, auth=auth_of(given), transport=transport) as client, opened(path) as source:
        Sender(client, Line(CHUNK, parallel=1)).send(source, path.name, progress=end_logins)
    assert sum(ended) >= 6
    assert stored(service, "grace/renewed.h5") == content


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"--token-file": None}, "401 a bearer token is needed"),
        ({"--to": "http://127.0.0.1:1", "--patience": 0}, "is it up"),
        ({"--to": "gopher://x"}, "give a URL"),
        ({"--chunk": "1GB"}, "are not taken"),
    ],
)
def test_what_can_not_be_done_is_told_in_words(service, tmp_path, more, words):
    (tmp_path / "a.h5").write_bytes(b"x" * 100)
    done = upload(service, tmp_path / "a.h5", **more)
    assert done.wait() == 2
    assert words in done.said()
    assert upload(service, tmp_path / "absent.h5").wait() == 2


def test_a_file_that_changes_is_not_finalised(service, tmp_path):
    path: Path = tmp_path / "changing.h5"
    path.write_bytes(os.urandom(20 * CHUNK))
    with opened(path) as source, pytest.raises(SourceChanged):
        Sender(service.operator, Line(CHUNK)).send(source, path.name, progress=lambda _: path.write_bytes(b"new"))
    assert not [name for name in service.files() if "changing" in name]


def test_a_file_that_becomes_shorter_is_not_waited_for(service, tmp_path):
    path: Path = tmp_path / "shorter.h5"
    path.write_bytes(os.urandom(20 * CHUNK))
    by = {"base_url": service.url, "headers": service.operator.headers, "transport": transport_to(service.url)}
    with httpx.Client(**by) as client, opened(path) as source, pytest.raises(SourceChanged):
        Sender(client, Line(CHUNK)).send(source, path.name, progress=lambda _: os.truncate(path, CHUNK))


def test_no_more_is_read_once_a_chunk_can_not_be_sent(service, tmp_path, monkeypatch):
    path = tmp_path / "unreadable.h5"
    path.write_bytes(os.urandom(50 * CHUNK))
    reads, lock, blocks = [], threading.Lock(), FileSource.blocks

    def read(source: FileSource, start: int, stop: int) -> Iterator[bytes]:
        with lock:
            reads.append(start)
        if start:
            raise UserError("the disk has a fault")
        return blocks(source, start, stop)

    monkeypatch.setattr(FileSource, "blocks", read)
    with opened(path) as source, pytest.raises(UserError, match="the disk has a fault"):
        Sender(service.operator, Line(CHUNK)).send(source, path.name)
    assert len(set(reads)) <= 1 + 2 * 4
