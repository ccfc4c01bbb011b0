"""What strangers, who have no token, can do to a service: nothing that lasts."""

import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

import httpx
import pytest

from delivery.web import heads
from delivery.web.app import create_app
from tests.delivery.intake_service import intake
from tests.delivery.placed_sites import Pair, memory
from tests.delivery.sync_programs import Program, address, program, server_command
from tests.delivery.test_ranges import served
from tests.delivery.ticket_service import ticket_service

MANY = 20_000_000
"""Bytes that a stranger sends."""

MORE = 10_000_000
"""Bytes by which a service may have grown then."""

HUGE = 10**30
"""A number that no database holds."""

JSON = {"Content-Type": "application/json"}
STALL = "--stall", "5 s"


class Service(NamedTuple):
    """A service, where it is, an operator's token, and an upload or a ticket there."""

    url: str
    process: Program
    token: str = ""
    item: str = ""


@pytest.fixture(scope="module")
def services(tmp_path_factory) -> Iterator[dict[str, Service]]:
    folder = tmp_path_factory.mktemp("strangers")
    sites = Pair(folder, *STALL)
    with ExitStack() as open_:
        open_.callback(sites.kill)
        sites.start("zero")
        mine = open_.enter_context(intake(folder / "intake", *STALL, "--old-clients-key", "known"))
        tickets = open_.enter_context(ticket_service(folder))
        tickets.write("a", b"a")
        ticket = tickets.ask("*")
        tickets.until(ticket, "ready")
        sync = open_.enter_context(program(*server_command(folder, "--tokens", folder / "tokens"), folder=folder))
        yield {
            "placed": Service(sites.url("zero"), sites.running["zero"], sites.tokens["operator"]),
            "intake": Service(mine.url, mine.process, mine.token, mine.prepare("a", 1000)),
            "tickets": Service(tickets.url, tickets.process, tickets.token, ticket),
            "sync": Service(address(sync).removesuffix("/stream"), sync),
        }


def line_to(url: str) -> socket.socket:
    return socket.create_connection((httpx.URL(url).host, httpx.URL(url).port), 30)


@pytest.mark.parametrize("announced", [True, False], ids=["announced", "chunked"])
@pytest.mark.parametrize(
    ("service", "method", "path", "status"),
    [
        ("intake", "POST", "/upload/prepare/", 413),
        ("intake", "POST", "/upload/1/known", 413),
        ("intake", "POST", "/upload/1/chunk/0", 401),
        ("intake", "POST", "/upload/1/finalise", 401),
        ("intake", "POST", "/auth/token/", 413),
        ("tickets", "POST", "/register", 413),
        ("tickets", "POST", "/login", 413),
        ("tickets", "PATCH", "/people/ada", 413),
        ("tickets", "POST", "/download", 401),
        ("sync", "PUT", "/stream/head/h5/batches/1", 401),
        ("placed", "POST", "/copies/1/fetch", 413),
        ("placed", "POST", "/data/upload", 401),
        ("placed", "POST", "/messages", 401),
    ],
)
def test_a_large_body_of_a_stranger_takes_no_memory(services, service, method, path, status, announced):
    there, process = services[service], services[service].process.process
    before = memory(process.pid)
    body = bytes(MANY) if announced else iter([bytes(MANY // 1000)] * 1000)
    answer = httpx.request(method, f"{there.url}{path}", content=body, headers=JSON, timeout=30)
    assert answer.status_code == status
    assert "detail" in answer.json()
    assert memory(process.pid) - before < MORE


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (b"GET /", b"a" * 10_000),
        (b"GET / HTTP/1.1\r\nHost: ", b"a" * 10_000),
        (b"GET / HTTP/1.1\r\nHost: a\r\n", b"a: b\r\n" * 1000),
        (b"POST /login HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"a: b\r\n" * 1000),
    ],
    ids=["path", "header", "headers", "trailers"],
)
def test_an_endless_head_takes_no_memory(services, begin, more):
    there, process = services["tickets"], services["tickets"].process.process
    before = memory(process.pid)
    with line_to(there.url) as line, pytest.raises(ConnectionError):  # noqa: PT012
        line.sendall(begin)
        for _ in range(MANY // len(more)):
            line.sendall(more)
    assert memory(process.pid) - before < MORE


@pytest.mark.parametrize("begin", [b"", b"GET / HTT", b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\nG"])
def test_who_says_nothing_is_hung_up_on(monkeypatch, begin):
    monkeypatch.setattr(heads, "PATIENCE", 3.0)
    with served(create_app("test")) as url, line_to(url) as line:
        line.sendall(begin)
        assert line.makefile("rb").read().count(b"200 OK") == begin.count(b"/healthz")


def test_who_goes_on_with_a_body_that_was_answered_is_heard_out(monkeypatch):
    """Who is slow, and would send all of it again."""
    monkeypatch.setattr(heads, "PATIENCE", 3.0)
    with served(create_app("test")) as url, line_to(url) as line:
        line.sendall(b"POST /nothing HTTP/1.1\r\nHost: a\r\nContent-Length: 500000\r\n\r\n")
        for _ in range(5):
            time.sleep(0.75)  # together longer than its patience
            line.sendall(bytes(100_000))
        line.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        answers = line.makefile("rb").read()
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"404", b"200"]


@pytest.mark.parametrize(
    ("service", "path", "kind"),
    [
        ("intake", "/login", "application/json"),
        ("intake", "/auth/token/", "application/x-www-form-urlencoded"),
        ("placed", "/copies/1/fetch", "application/json"),
    ],
)
def test_a_body_that_stops_half_way_is_given_up(services, service, path, kind):
    with line_to(services[service].url) as line:
        line.sendall(
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: 9\r\n\r\nabc".encode()
        )
        answer = line.makefile("rb").read()  # up to the end of the line
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"only 3 bytes of the body came within 5 s" in answer


@pytest.mark.parametrize(
    ("service", "method", "path", "body", "status"),
    [
        ("intake", "POST", "/auth/token/", rb'{"username": "\ud800", "password": "correct horse"}', 400),
        ("intake", "POST", "/auth/token/", rb'{"username": "a\u0000b", "password": "correct horse"}', 400),
        ("intake", "POST", "/auth/token/", b"[" * 3000, 400),
        ("intake", "POST", "/login", b"[" * 3000, 400),
        ("intake", "POST", "/login", rb'{"name": "ada", "password": "correct horse \ud800"}', 422),
        ("intake", "POST", "/upload/ITEM/chunk/0", b"[" * 1000, 400),
        ("intake", "POST", "/upload/ITEM/chunk/0", b"9" * 1000, 400),
        ("intake", "POST", f"/upload/ITEM/chunk/{HUGE}", b'""', 400),
        ("intake", "POST", "/upload/ITEM/known", b'{"chunks": {"%d": "%064d"}}' % (HUGE, 0), 200),
        ("intake", "GET", f"/audit?after={HUGE}", b"", 422),
        ("intake", "PATCH", "/people/nobody", b'{"quota": %d}' % HUGE, 422),
        ("intake", "PATCH", "/people/nobody", b'{"licence": "1e400 s"}', 422),
        ("intake", "POST", "/upload/prepare/", b'{"name": "a", "chunk_size": %d}' % HUGE, 400),
        ("tickets", "POST", "/download", b"[" * 3000, 422),
        ("tickets", "POST", "/download", b'{"paths": ["*"], "volume": %d}' % HUGE, 422),
        ("tickets", "POST", "/download", b'{"paths": ["*"], "downloads": %d}' % HUGE, 422),
        ("tickets", "GET", "/ticket/ITEM/status", b"", 422),
        ("tickets", "GET", f"/ticket/ITEM/result?volume={HUGE}", b"", 404),
        ("placed", "GET", f"/set-aside?after={HUGE}", b"", 422),
        ("placed", "POST", f"/set-aside/{HUGE}/replay", b"", 422),
        ("placed", "DELETE", f"/set-aside/{-HUGE}", b"", 422),
    ],
)
def test_rubbish_is_refused_in_words(services, service, method, path, body, status):
    """Also that of people with a token."""
    there = services[service]
    own = {"Authorization": f"Bearer {there.token}", "Content-SHA256": "0" * 64, "Last-Event-ID": str(HUGE)}
    url = there.url + path.replace("ITEM", there.item)
    answer = httpx.request(method, url, content=body, headers=JSON | own, timeout=30)
    assert answer.status_code == status, answer.text
    assert answer.json()


def test_who_has_a_token_may_list_many_files(services):
    """More than a small body may have."""
    service = services["tickets"]
    paths = [f"{number:0200}.h5" for number in range(5000)]
    own = {"Authorization": f"Bearer {service.token}"}
    answer = httpx.post(f"{service.url}/download", json={"paths": paths}, headers=own, timeout=60)
    assert answer.status_code == 404
    assert len(answer.json()["files"]) == 5000
