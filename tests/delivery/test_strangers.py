"""What strangers, who have no token, can do to a service: nothing that lasts."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

import httpx
import pytest

from tests.delivery.intake_service import intake
from tests.delivery.placed_sites import Pair, memory
from tests.delivery.sync_programs import Program, address, program, server_command
from tests.delivery.ticket_service import ticket_service

MANY = 20_000_000
"""Bytes that a stranger sends."""

MORE = 10_000_000
"""Bytes by which a service may have grown then."""

JSON = {"Content-Type": "application/json"}
STALL = "--stall", "1 s"


class Service(NamedTuple):
    """A service, and where it is."""

    url: str
    process: Program
    token: str = ""


@pytest.fixture(scope="module")
def services(tmp_path_factory) -> Iterator[dict[str, Service]]:
    folder = tmp_path_factory.mktemp("strangers")
    sites = Pair(folder, *STALL)
    with ExitStack() as open_:
        open_.callback(sites.kill)
        sites.start("zero")
        mine = open_.enter_context(intake(folder / "intake", *STALL))
        tickets = open_.enter_context(ticket_service(folder))
        sync = open_.enter_context(program(*server_command(folder, "--tokens", folder / "tokens"), folder=folder))
        yield {
            "placed": Service(sites.url("zero"), sites.running["zero"]),
            "intake": Service(mine.url, mine.process),
            "tickets": Service(tickets.url, tickets.process, tickets.token),
            "sync": Service(address(sync).removesuffix("/stream"), sync),
        }


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
    url, process, _ = services[service]
    before = memory(process.process.pid)
    body = bytes(MANY) if announced else iter([bytes(MANY // 1000)] * 1000)
    answer = httpx.request(method, f"{url}{path}", content=body, headers=JSON, timeout=30)
    assert answer.status_code == status
    assert "detail" in answer.json()
    assert memory(process.process.pid) - before < MORE


@pytest.mark.parametrize(
    ("service", "path", "kind"),
    [
        ("intake", "/login", "application/json"),
        ("intake", "/auth/token/", "application/x-www-form-urlencoded"),
        ("placed", "/copies/1/fetch", "application/json"),
    ],
)
def test_a_body_that_stops_half_way_is_given_up(services, service, path, kind):
    url = httpx.URL(services[service].url)
    with socket.create_connection((url.host, url.port), 30) as line:
        line.sendall(
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: 9\r\n\r\nabc".encode()
        )
        answer = line.makefile("rb").read()  # up to the end of the line
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"only 3 bytes of the body came within 1 s" in answer


def test_who_has_a_token_may_list_many_files(services):
    """More than a small body may have."""
    service = services["tickets"]
    paths = [f"{number:0200}.h5" for number in range(5000)]
    answer = httpx.post(
        f"{service.url}/download", json={"paths": paths}, headers={"Authorization": f"Bearer {service.token}"}
    )
    assert answer.status_code == 404
    assert len(answer.json()["files"]) == 5000
