"""Answers of a real server: whole, in parts, cut off, and when their source fails."""

import http.client
import os
import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Queue

import httpx
import pytest
import structlog
import uvicorn
from fastapi import FastAPI

from delivery.web.app import bearer, create_app, server_config
from delivery.web.ranges import RangeResponse
from ministream.base.errors import UserError
from tests.delivery.sync_programs import until

WHOLE = os.urandom(300_000)
BLOCK = 65_536


class Bytes:
    """Content in memory; fails once `fails_at` is to be read."""

    etag = '"the-tag"'

    def __init__(self, whole: bytes, fails_at: int | None = None) -> None:
        self.length, self.closed = len(whole), threading.Event()
        self._whole, self._fails_at = whole, fails_at

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        try:
            for at in range(start, stop, BLOCK):
                if self._fails_at is not None and at >= self._fails_at:
                    raise UserError("the source has changed")
                yield self._whole[at : min(at + BLOCK, stop)]
        finally:
            self.closed.set()


class Endless(Bytes):
    """More than any socket buffers."""

    def __init__(self) -> None:
        super().__init__(b"")
        self.length = 1 << 40

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        try:
            while start < stop:
                yield bytes(1 << 20)
        finally:
            self.closed.set()


@contextmanager
def served(app: FastAPI, loop: str = "auto") -> Iterator[str]:
    """Serve `app` from a thread; yields its address."""
    listening = socket.create_server(("127.0.0.1", 0))
    config = server_config(app)
    config.loop = loop
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


Sent = dict[str, Queue[tuple[int, int]]]
"""What was told to be sent whole, by the name of the route; told a moment after the client has it."""


@pytest.fixture(scope="module")
def sent() -> Sent:
    return defaultdict(Queue)


@pytest.fixture(scope="module")
def endless() -> Endless:
    return Endless()


@pytest.fixture(scope="module")
def address(sent, endless) -> Iterator[str]:
    app = create_app("test")

    def note(name: str) -> Callable[[int, int], None]:
        return lambda start, stop: sent[name].put((start, stop))

    @app.api_route("/told/{name}", methods=["GET", "HEAD"])
    def told(name: str):
        return RangeResponse(Bytes(WHOLE), filename="h5_3files.zip", on_sent=note(name))

    app.get("/whole")(lambda: RangeResponse(Bytes(WHOLE)))

    app.get("/named")(lambda: RangeResponse(Bytes(b"x"), filename='größe "1".zip'))
    app.get("/empty")(lambda: RangeResponse(Bytes(b"")))
    app.get("/late")(lambda: RangeResponse(Bytes(WHOLE, fails_at=BLOCK), on_sent=note("late")))
    app.get("/early")(lambda: RangeResponse(Bytes(WHOLE, fails_at=0)))
    app.get("/endless")(lambda: RangeResponse(endless, on_sent=note("endless")))
    app.get("/fault")(lambda: 1 / 0)

    @app.get("/private")
    def private(who: str = bearer({"right": "Ada"}.get)) -> str:
        return who

    with served(app) as base:
        yield base


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-", 0, 300_000),
        ("bytes=100-199", 100, 200),
        ("bytes=65535-65536", 65_535, 65_537),
        ("bytes=299999-", 299_999, 300_000),
        ("bytes=299999-999999999", 299_999, 300_000),
        ("bytes=-5", 299_995, 300_000),
        ("bytes=-999999999", 0, 300_000),
    ],
)
def test_a_range_is_that_part(address, asked, start, stop):
    answer = httpx.get(f"{address}/whole", headers={"Range": asked})
    assert answer.content == WHOLE[start:stop]
    assert answer.status_code == (200 if stop - start == len(WHOLE) else 206)
    if answer.status_code == 206:
        assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/300000"


@pytest.mark.parametrize(
    "asked",
    ["", "bytes=", "bytes=-", "bytes=5-4", "bytes=a-b", "lines=1-2", "bytes=0-1,5-6", "bytes=" + "9" * 5000 + "-"],
)
def test_a_range_that_says_nothing_is_answered_with_the_whole(address, asked):
    answer = httpx.get(f"{address}/whole", headers={"Range": asked})
    assert (answer.status_code, answer.content) == (200, WHOLE)


@pytest.mark.parametrize("asked", ["bytes=300000-", "bytes=300000-300001", "bytes=-0"])
def test_a_range_beyond_the_end_is_refused(address, asked):
    answer = httpx.get(f"{address}/whole", headers={"Range": asked})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == "bytes */300000"


def test_nothing_has_no_range(address):
    assert httpx.get(f"{address}/empty").content == b""
    assert httpx.get(f"{address}/empty", headers={"Range": "bytes=0-"}).status_code == 416


def test_a_part_of_what_is_no_longer_the_same_is_the_whole(address):
    same = httpx.get(f"{address}/whole", headers={"Range": "bytes=1-2", "If-Range": '"the-tag"'})
    assert same.content == WHOLE[1:3]
    for other in ('"another"', 'W/"the-tag"', "Wed, 21 Oct 2015 07:28:00 GMT"):
        answer = httpx.get(f"{address}/whole", headers={"Range": "bytes=1-2", "If-Range": other})
        assert (answer.status_code, answer.content) == (200, WHOLE)


def test_what_somebody_has_is_not_sent_again(address):
    for tags in ('"the-tag"', '"a", W/"the-tag"', "*"):
        answer = httpx.get(f"{address}/whole", headers={"If-None-Match": tags})
        assert (answer.status_code, answer.content) == (304, b"")
    assert httpx.get(f"{address}/whole", headers={"If-None-Match": '"other"'}).status_code == 200


def test_a_head_tells_all_and_sends_nothing(address, sent):
    answer = httpx.head(f"{address}/told/head")
    assert answer.headers["content-length"] == "300000"
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["etag"] == '"the-tag"'
    assert answer.headers["content-disposition"] == 'attachment; filename="h5_3files.zip"'
    assert answer.content == b""
    httpx.get(f"{address}/told/head", headers={"Range": "bytes=7-99"})
    assert sent["head"].get(timeout=20) == (7, 100)


def test_a_name_that_is_not_ascii_is_encoded(address):
    named = httpx.get(f"{address}/named").headers["content-disposition"]
    assert named == "attachment; filename*=UTF-8''gr%C3%B6%C3%9Fe%20%221%22.zip"


def test_a_source_that_fails_under_way_breaks_the_connection(address, sent):
    connection = http.client.HTTPConnection(address.removeprefix("http://"))
    connection.request("GET", "/late")
    answer = connection.getresponse()
    assert answer.status == 200
    with pytest.raises(http.client.IncompleteRead) as caught:
        answer.read()
    assert WHOLE.startswith(caught.value.partial)
    connection.close()
    assert sent["late"].empty()


def test_a_source_that_fails_at_once_is_an_error_in_words(address):
    answer = httpx.get(f"{address}/early")
    assert answer.status_code == 400
    assert answer.json() == {"detail": "the source has changed"}


def test_who_leaves_is_noticed_and_nothing_stays_open(address, endless, sent):
    with socket.create_connection(address.removeprefix("http://").split(":")) as connection:
        connection.sendall(b"GET /endless HTTP/1.1\r\nHost: test\r\n\r\n")
        assert connection.recv(100)
        assert not endless.closed.is_set()
    assert endless.closed.wait(20)
    assert sent["endless"].empty()


def test_what_was_sent_whole_is_told(address, sent):
    httpx.get(f"{address}/told/parts", headers={"Range": "bytes=7-99"})
    assert sent["parts"].get(timeout=20) == (7, 100)
    httpx.get(f"{address}/told/parts")
    assert sent["parts"].get(timeout=20) == (0, 300_000)


def test_every_service_has_health_metrics_and_documentation(address):
    assert httpx.get(f"{address}/healthz").text == "ok\n"
    httpx.get(f"{address}/whole")
    counted = 'delivery_request_seconds_count{method="GET",route="/whole",status="200"}'
    until(lambda: counted in httpx.get(f"{address}/metrics").text, "it is counted")
    assert httpx.get(f"{address}/docs").status_code == 200
    assert httpx.get(f"{address}/nothing").json() == {"detail": "Not Found"}


def test_a_fault_of_ours_says_no_more_than_that(address):
    structlog.configure(processors=[structlog.processors.KeyValueRenderer()])
    answer = httpx.get(f"{address}/fault")
    assert answer.status_code == 500
    assert "ZeroDivision" not in answer.text


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Basic cmlnaHQ6", "right"])
def test_without_a_known_token_nobody_comes_in(address, header):
    answer = httpx.get(f"{address}/private", headers={"Authorization": header} if header else {})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "detail" in answer.json()


def test_a_token_names_its_bearer(address):
    assert httpx.get(f"{address}/private", headers={"Authorization": "Bearer right"}).json() == "Ada"
