"""What is stored is sent on: to another intake, by PUT, to S3; verified there, retried, and seen."""

import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from delivery.stores import Store
from tests.delivery.intake_service import Intake, cut, intake, made, tree
from tests.delivery.sync_programs import free_port, until

CHUNK = 100_000


def sent(service: Intake, content: bytes, name: str = "scan.h5") -> str:
    upload = service.prepare(name, len(content), CHUNK)
    for number, chunk in enumerate(cut(content, CHUNK)):
        made(service.put(upload, number, chunk))
    made(service.finalise(upload, tree(content, CHUNK)))
    return upload


def copied(service: Intake, upload: str, state: str = "done") -> dict:
    until(lambda: service.status(upload)["forward"]["state"] == state, f"the copy to be {state}")
    return service.status(upload)


def test_a_copy_goes_to_another_intake_that_is_down_at_first(tmp_path):
    content, port = os.urandom(5 * CHUNK + 7), free_port()
    far = Intake(tmp_path / "far", port=port)
    far.kill()
    options = ["--forward", far.url, "--forward-token-file", far.token_file]
    with intake(tmp_path / "near", *options) as near:
        upload = sent(near, content)
        near.process.kill()  # the job is under way
        near.start()
        far.start()
        try:
            copied(near, upload)
            assert list(far.files().values()) == list(near.files().values()) == [content]
            actions = [line["action"] for line in near.operator.get("/audit").json()]
            assert actions.count("forward done") == 1
        finally:
            far.kill()


class Shelf(BaseHTTPRequestHandler):
    """Takes PUT and gives by GET what it took, damaged where `damage` says so."""

    shelf: ClassVar[dict[str, bytes]] = {}
    damage = threading.Event()

    def do_PUT(self) -> None:
        self.shelf[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(201)
        self.end_headers()

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        content = self.shelf[self.path]
        self.wfile.write(content[:-1] + b"\0" if self.damage.is_set() else content)

    def log_message(self, *_: object) -> None:
        pass


def test_a_copy_is_put_and_read_back(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Shelf)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    content = os.urandom(3 * CHUNK) + b"\1"
    Shelf.damage.set()
    try:
        with intake(tmp_path, "--forward", f"put+http://127.0.0.1:{server.server_port}/in") as service:
            upload = sent(service, content, "größe.h5")
            until(lambda: service.status(upload)["forward"]["attempts"], "a try has failed")
            status = service.status(upload)
            assert (status["forward"]["state"], "the far end has other bytes" in status["reason"]) == ("waiting", True)
            Shelf.damage.clear()
            copied(service, upload)
        assert list(Shelf.shelf.values()) == [content]
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.usefixtures("seaweed")
def test_a_copy_goes_to_s3(tmp_path):
    content = os.urandom(3 * CHUNK)
    with intake(tmp_path, "--forward", "s3://artefacts/copies") as service:
        status = copied(service, sent(service, content))
    stored = Store("s3://artefacts/copies").open(status["place"], "")
    assert b"".join(stored.read(0, len(content))) == content


def test_a_copy_that_never_arrives_is_given_up(tmp_path):
    with intake(tmp_path, "--forward", "put+http://127.0.0.1:1/", "--forward-attempts", "1") as service:
        status = copied(service, sent(service, b"x"), "failed")
        assert "refused" in status["reason"]


def test_a_target_that_is_none_is_refused(tmp_path):
    with pytest.raises(AssertionError, match="give a URL that begins with"):
        Intake(tmp_path, "--forward", "gopher://there")
