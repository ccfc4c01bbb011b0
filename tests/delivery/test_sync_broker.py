"""The broker against lines that cut, disks that are full, servers of the old kind and servers that lie."""

import io
import os
import random
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from delivery.archive.layout import MANIFEST
from delivery.archive.parcels import Damaged, verify
from delivery.sync.broker import Broker
from delivery.sync.fetching import Busy, Server
from delivery.sync.hooks import find_hook
from delivery.sync.inbox import Inbox
from ministream.base.errors import UserError
from tests.delivery.sync_programs import Line, address, bytes_sent, files, packed, program, put, server_command, until

CUTS, MANY_CUTS = 5, 100

STRETCH = 3_000_000
"""Bytes between two cuts, more or less."""

IN_FLIGHT = 6_500_000
"""Bytes that a server may send in vain before a cut: two blocks, and 4 MiB that Linux lets a socket hold."""


class Mirror:
    """A broker in this process."""

    def __init__(self, api: str, home: Path, hook: str = "unzip", token: Path | None = None) -> None:
        self.server = Server(api, "head", "h5", 0, token)
        self.download = home / "head" / "download"
        self.inbox = Inbox(self.download, "h5")
        self.broker = Broker(self.server, self.inbox, find_hook(hook))

    def close(self) -> None:
        self.server.close()
        self.inbox.close()


@pytest.fixture
def mirrors() -> Iterator[list[Mirror]]:
    opened: list[Mirror] = []
    yield opened
    for mirror in opened:
        mirror.close()


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("site") / "media"


@pytest.fixture(scope="module")
def api(media) -> Iterator[str]:
    media.mkdir()
    with program(*server_command(media, "--insecure-no-auth"), folder=media.parent) as server:
        yield address(server)


@pytest.mark.parametrize("cuts", [CUTS, pytest.param(MANY_CUTS, marks=pytest.mark.faults)])
def test_a_batch_that_is_cut_at_random_bytes_comes_whole_and_nothing_twice(api, media, tmp_path, mirrors, cuts):
    sent = put(media / "head" / "bar", large=os.urandom(cuts * STRETCH), **{f"f{i}": os.urandom(i) for i in range(40)})
    earlier, whole = bytes_sent(api), httpx.get(f"{api}/head/h5").content
    until(lambda: bytes_sent(api) >= earlier + len(whole), "the answer is counted")
    before = bytes_sent(api)
    chance = random.Random(cuts)
    points = sorted(chance.sample(range(1, len(whole)), cuts))
    limits = iter([b - a for a, b in pairwise([0, *points])])
    line = Line(api, lambda _head: next(limits, None))
    mirror = Mirror(line.api, tmp_path)
    try:
        assert mirror.server.fetch(mirror.inbox, None)
    finally:
        mirror.close()
        line.close()
    assert mirror.inbox.part.read_bytes() == whole
    assert len(line.carried) == cuts + 1
    assert sum(line.carried) == len(whole)
    in_vain = bytes_sent(api) - before - len(whole)
    print(f"{cuts} cuts of {len(whole)} bytes: the server sent {in_vain} more, {in_vain // cuts} for each")
    assert in_vain < cuts * IN_FLIGHT
    mirrors.append(direct := Mirror(api, tmp_path))
    assert direct.broker.turn()
    assert sent.items() <= files(direct.download).items()
    assert not files(media / "head" / "bar")


def test_a_disk_that_is_full_keeps_what_came_and_goes_on_later(api, media, tmp_path):
    sent = put(media / "head" / "bar", big=os.urandom(5_000_000))
    command = ["-c", _LIMITED, "--api", api, "--project", "head", "--datadir", tmp_path, "--interval", 0.2, "--once"]
    with program(*command, folder=tmp_path) as broker:
        assert broker.wait() == 2
        assert "cannot write" in broker.said()
        assert "File too large" in broker.said()
    part = tmp_path / "head" / "download" / ".h5" / "part"
    assert part.stat().st_size == 1_000_000
    mirror = Mirror(api, tmp_path)
    try:
        assert mirror.broker.turn()
    finally:
        mirror.close()
    assert sent.items() <= files(mirror.download).items()


_LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
sys.argv[1:1] = ["broker"]
from delivery.main import main
main()
"""


class OldServer:
    """A server that answers with what it is given, in chunks, without length, ETag or manifest, and once only."""

    def __init__(self, *answers: bytes | int, whole: bool = True, headers: dict[str, str] | None = None) -> None:
        self.asked: list[dict[str, str]] = []
        waiting = list(answers)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(handler) -> None:  # noqa: N805
                self.asked.append(dict(handler.headers))
                answer = waiting.pop(0) if waiting else 404
                if isinstance(answer, int):
                    handler.send_response(answer)
                    for name, value in {"Content-Length": "0", **(headers or {})}.items():
                        handler.send_header(name, value)
                    handler.end_headers()
                    return
                handler.send_response(200)
                handler.send_header("Transfer-Encoding", "chunked")
                handler.send_header("Content-Disposition", "attachment; filename=h5_1files_1700000000.zip")
                handler.end_headers()
                handler.wfile.write(b"%x\r\n%b\r\n" % (len(answer), answer) + b"0\r\n\r\n" * whole)
                handler.close_connection = not whole

            def log_message(handler, *_args) -> None:  # noqa: N805
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.api = f"http://127.0.0.1:{self._server.server_port}/stream"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def __enter__(self) -> "OldServer":
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def zipped(**contents: bytes | str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name.replace("__", "/"), content)
    return file.getvalue()


def test_a_server_of_the_old_kind_is_mirrored_too(tmp_path, mirrors):
    first, second = zipped(**{"a.h5": b"a"}), zipped(**{"b.h5": b"b"})
    with OldServer(first, second) as old:
        mirrors.append(mirror := Mirror(old.api, tmp_path))
        assert [mirror.broker.turn() for _ in range(3)] == [True, True, False]
        mirror.server.close()
    assert files(mirror.download) == {
        "a.h5": b"a",
        "b.h5": b"b",
        "h5_1files_1700000000.zip": first,
        "h5_1files_1700000000-2.zip": second,
    }
    assert "Authorization" not in old.asked[0]


def test_an_answer_of_the_old_kind_that_was_cut_is_never_taken_for_the_whole(tmp_path, mirrors):
    with OldServer(zipped(**{"a.h5": b"a"}), whole=False) as old:
        mirrors.append(mirror := Mirror(old.api, tmp_path))
        with pytest.raises(UserError, match="is the server up"):
            mirror.broker.turn()
        mirror.server.close()
    assert files(mirror.download) == {}


@pytest.mark.parametrize(
    "content",
    [
        b"no zip",
        zipped(**{"a.h5": b"a" * 100}).replace(b"a" * 100, b"a" * 99 + b"b"),
        zipped(**{"..__..__out.h5": b"a"}),
        zipped(**{"__etc__out.h5": b"a"}),
        zipped(**{"c:\\out.h5": b"a"}),
        zipped(**{".h5__record.json": b"a"}),
        zipped(**{"line\nfeed.h5": b"a"}),
        zipped(**{"a.h5": b"a", MANIFEST: '{"files": [{"name": "a.h5", "blake3": "00"}]}'}),
        zipped(**{"a.h5": b"a", MANIFEST: '{"files": []}'}),
        zipped(**{"a.h5": b"a", MANIFEST: '{"files": [{"name": "a.h5"}]}'}),
        zipped(**{"a.h5": b"a", MANIFEST: "[]"}),
    ],
    ids=range(11),
)
def test_what_is_damaged_or_leads_elsewhere_is_set_aside_whole(tmp_path, mirrors, content):
    with OldServer(content) as old:
        mirrors.append(mirror := Mirror(old.api, tmp_path))
        with pytest.raises(Damaged, match="it is kept as"):
            mirror.broker.turn()
        assert not mirror.broker.turn()
        mirror.server.close()
    assert files(tmp_path) == {}
    assert [path.read_bytes() for path in (mirror.download / ".h5").glob("damaged-*")] == [content]


@pytest.mark.parametrize("status", [401, 403, 406, 500, 503])
def test_a_refusal_is_told_with_its_status(tmp_path, mirrors, status):
    with OldServer(status, headers={"Retry-After": "7"}) as old:
        mirrors.append(mirror := Mirror(old.api, tmp_path))
        with pytest.raises(Busy, match=str(status)) as caught:
            mirror.broker.turn()
        mirror.server.close()
    assert caught.value.seconds == 7


def test_a_batch_is_taken_up_wherever_the_broker_was_killed(api, media, tmp_path, mirrors):
    """Killed after the zip had got its name, and before the server knew; and before anything had come."""
    sent = put(media / "head" / "bar", late=b"late")
    mirrors.append(first := Mirror(api, tmp_path))
    record = first.server.fetch(first.inbox, None)
    first.inbox.part.rename(first.inbox.path(record))
    first.inbox.close()
    mirrors.append(second := Mirror(api, tmp_path))
    assert second.broker.turn()
    assert not second.broker.turn()
    assert set(files(second.download)) == {"late.h5", record.name}
    assert packed(second.download / record.name).keys() == sent.keys()
    mirrors.remove(first)
    first.server.close()


def test_a_users_function_is_called_with_the_zip(tmp_path, monkeypatch):
    (tmp_path / "their_hook.py").write_text("def take(path):\n    path.rename(path.with_suffix('.taken'))\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    (tmp_path / "a.zip").write_bytes(zipped(a=b"a"))
    hook = find_hook("their_hook:take")
    hook(tmp_path / "a.zip")
    assert verify(tmp_path / "a.taken").keys() == {"a"}
    with pytest.raises(UserError, match="their_hook:take failed"):
        hook(tmp_path / "a.zip")


def test_zips_that_are_not_kept_go_once_they_are_unzipped(tmp_path):
    (tmp_path / "a.zip").write_bytes(zipped(deep__a=b"a"))
    hook = find_hook("unzip", keep_zips=False)
    hook(tmp_path / "a.zip")
    hook(tmp_path / "a.zip")
    assert files(tmp_path) == {"deep/a": b"a"}


@pytest.mark.parametrize("content", ["", "two words", "größe"])
def test_a_file_that_holds_no_token_is_named(tmp_path, mirrors, content):
    (tmp_path / "token").write_text(content)
    mirrors.append(mirror := Mirror("http://127.0.0.1:1/stream", tmp_path, token=tmp_path / "token"))
    with pytest.raises(UserError, match="holds no token"):
        mirror.broker.turn()
