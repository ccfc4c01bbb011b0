"""Bodies that threads read from the socket: whole, in order, and the connection goes on afterwards, whatever came."""

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from fastapi import FastAPI, HTTPException, Request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect

from delivery.web.socket_body import BUFFER, READERS, rest_of
from tests.delivery.test_ranges import served

STALL = 60.0
LARGE = bytes(range(256)) * (3 * BUFFER // 256)


class Server:
    """Takes bodies by way of their sockets."""

    def __init__(self) -> None:
        self.app, self.address = FastAPI(), ("", 0)
        self.threads: set[threading.Thread] = set()
        self.cut = threading.Event()
        self.app.put("/body")(self.body)
        self.app.put("/refuse")(self.refuse)
        self.app.get("/length")(lambda: 0)

    async def body(self, request: Request) -> list[int | bool]:
        """Take a body; answer its length, its sum, and whether it was handed over."""
        taken, rest = bytearray(), rest_of(request)

        def into(piece: memoryview) -> None:
            self.threads.add(threading.current_thread())
            taken.extend(piece)

        if rest is None:
            taken += await request.body()
        else:
            try:
                with rest:
                    await rest.pour(into, float(request.query_params.get("stall", STALL)))
            except TimeoutError as error:
                raise HTTPException(408) from error
            except ClientDisconnect:
                self.cut.set()
                raise
        return [len(taken), sum(taken), rest is not None]

    async def refuse(self, request: Request) -> None:
        """Take the beginning of a body, and fail."""

        def into(_piece: memoryview) -> None:
            raise HTTPException(507)

        rest = rest_of(request)
        assert rest is not None
        with rest:
            await rest.pour(into, STALL)


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def server(request) -> Iterator[Server]:
    server = Server()
    with served(server.app, request.param) as address:
        host, _, port = address.removeprefix("http://").rpartition(":")
        server.address = host, int(port)
        yield server


def head(length: int, path: str = "body", *more: str) -> bytes:
    lines = [f"PUT /{path} HTTP/1.1", "Host: test", f"Content-Length: {length}", *more]
    return "\r\n".join([*lines, "", ""]).encode()


class Line:
    """A connection to the server."""

    def __init__(self, server: Server) -> None:
        self._socket = socket.create_connection(server.address, timeout=20)
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def send(self, content: bytes) -> None:
        self._socket.sendall(content)

    def answer(self) -> tuple[int, bytes]:
        """Return the status and the body of the next answer."""
        status, length = int(self._file.readline().split()[1]), 0
        while (line := self._file.readline()) != b"\r\n":
            name, _, value = line.partition(b":")
            length = int(value) if name == b"content-length" else length
        return status, self._file.read(length)


def told(content: bytes, *, handed: bool = True) -> tuple[int, bytes]:
    return 200, f"[{len(content)},{sum(content)},{str(handed).lower()}]".encode()


def test_bodies_arrive_whole_one_after_the_other(server):
    with Line(server) as line:
        for _ in range(3):
            line.send(head(len(LARGE)))
            line.send(LARGE)
            assert line.answer() == told(LARGE)


def test_threads_of_their_own_read(server):
    with Line(server) as line:
        line.send(head(len(LARGE)) + LARGE)
        line.answer()
    assert server.threads
    assert all("worker" in thread.name for thread in server.threads)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_requests_in_a_row_are_told_apart_however_they_are_cut(server, data):
    bodies = data.draw(st.lists(st.binary(max_size=40).map(lambda seed: seed * 7000), min_size=1, max_size=4))
    stream = b"".join(head(len(body)) + body for body in bodies)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    with Line(server) as line:
        for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            line.send(stream[start:stop])
        for body in bodies:
            status, answer = line.answer()
            assert (status, answer.rsplit(b",", 1)[0]) == (200, told(body)[1].rsplit(b",", 1)[0])


def test_what_a_route_leaves_is_passed_over(server):
    with Line(server) as line:
        for _ in range(2):
            line.send(head(len(LARGE), "refuse") + LARGE)
            assert line.answer()[0] == 507
        line.send(head(len(LARGE)) + LARGE)
        assert line.answer() == told(LARGE)


def test_silence_ends_a_request_and_the_rest_may_still_come(server):
    with Line(server) as line:
        line.send(head(len(LARGE), "body?stall=0.3") + LARGE[:1000])
        assert line.answer()[0] == 408
        line.send(LARGE[1000:] + head(10) + bytes(10))
        status, answer = line.answer()
        assert (status, answer[:6]) == (200, b"[10,0,")


def test_a_cut_line_is_noticed(server):
    server.cut.clear()
    with Line(server) as line:
        line.send(head(len(LARGE)) + LARGE[:-1])
    assert server.cut.wait(10)


def test_a_client_that_waits_is_told_to_go_on(server):
    with Line(server) as line:
        line.send(head(len(LARGE), "body", "Expect: 100-continue"))
        assert line.answer() == (100, b"")
        line.send(LARGE)
        assert line.answer() == told(LARGE)


def test_a_body_of_unknown_length_is_read_as_usual(server):
    with Line(server) as line:
        line.send(b"PUT /body HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
        assert line.answer() == told(b"abc", handed=False)


def test_more_silent_lines_than_threads_hold_nobody_up(server):
    with ExitStack() as open_:
        silent = [open_.enter_context(Line(server)) for _ in range(3 * READERS)]
        for line in silent:
            line.send(head(len(LARGE), "body?stall=0.3") + LARGE[:1])
        with Line(server) as line:
            line.send(head(len(LARGE)) + LARGE)
            assert line.answer() == told(LARGE)
        for line in silent:
            line.send(LARGE[1:])
            assert line.answer() in (told(LARGE), (408, b'{"detail":"Request Timeout"}'))


def test_without_our_protocol_nothing_is_handed_over():
    request = Request({"type": "http", "headers": [(b"content-length", b"3")]})
    assert rest_of(request) is None
