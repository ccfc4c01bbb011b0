"""Parts of files as bodies: sent whole over lines that are used again, whatever the far end does with them."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest

from delivery.upload.sendfile import EXTENSION, FileTransport, Part, transport_to

SIZE = 4 << 20
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture(scope="module")
def descriptor(tmp_path_factory) -> Iterator[int]:
    path = tmp_path_factory.mktemp("files") / "scan.h5"
    path.write_bytes(os.urandom(SIZE))
    descriptor = os.open(path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


@contextmanager
def far_end(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """Have `serve` called with each connection, one after the other."""
    listening = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        while True:
            try:
                line, _ = listening.accept()
            except OSError:
                return
            with line:
                serve(line)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()


def request(line: socket.socket) -> tuple[bytes, bytes] | None:
    """Return the head and the body of a request; None once the line is closed."""
    head = b""
    while b"\r\n\r\n" not in head:
        if not (more := line.recv(1)):
            return None
        head += more
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    return head, line.recv(length, socket.MSG_WAITALL)


def send(client: httpx.Client, descriptor: int, start: int, stop: int) -> httpx.Response:
    """Send a part of the file; the body itself is not to be read."""

    def nobody() -> Iterator[bytes]:
        raise AssertionError("read")
        yield b""

    headers = {"content-length": str(stop - start), "x-mark": "1"}
    part = {EXTENSION: Part(descriptor, start, stop)}
    return client.post("/chunk?n=1", content=nobody(), headers=headers, extensions=part)


def test_parts_arrive_by_one_line(descriptor):
    seen: list[tuple[bytes, bytes]] = []
    lines: list[socket.socket] = []

    def serve(line: socket.socket) -> None:
        lines.append(line)
        while asked := request(line):
            seen.append(asked)
            line.sendall(OK)

    with far_end(serve) as url, httpx.Client(base_url=url, transport=FileTransport()) as client:
        parts = [(0, SIZE), (1, 100), (SIZE - 5, SIZE)]
        assert [send(client, descriptor, *part).text for part in parts] == ["ok"] * 3
        client.close()
    assert [body for _, body in seen] == [os.pread(descriptor, stop - start, start) for start, stop in parts]
    assert all(head.startswith(b"POST /chunk?n=1 HTTP/1.1\r\n") and b"x-mark: 1" in head for head, _ in seen)
    assert len(lines) == 1


def test_a_line_that_was_closed_meanwhile_is_made_anew(descriptor):
    closed = threading.Event()

    def serve(line: socket.socket) -> None:
        request(line)
        line.sendall(OK)
        line.shutdown(socket.SHUT_RDWR)
        closed.set()

    with far_end(serve) as url, httpx.Client(base_url=url, transport=FileTransport()) as client:
        for _ in range(3):
            assert send(client, descriptor, 0, 100).text == "ok"
            assert closed.wait(10)
            closed.clear()


def test_who_refuses_half_way_is_heard(descriptor):
    def serve(line: socket.socket) -> None:
        line.recv(100)
        line.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
        line.shutdown(socket.SHUT_WR)
        while line.recv(SIZE):
            pass

    with far_end(serve) as url, httpx.Client(base_url=url, transport=FileTransport()) as client:
        answer = send(client, descriptor, 0, SIZE)
        assert (answer.status_code, answer.text) == (413, "big")


def test_a_line_that_breaks_is_an_error_of_the_transport(descriptor):
    def broken(url: str) -> None:
        with httpx.Client(base_url=url, transport=FileTransport()) as client, pytest.raises(httpx.TransportError):
            send(client, descriptor, 0, SIZE)

    with far_end(lambda line: line.recv(100)) as url:
        broken(url)
    broken(url)  # nobody listens any more


def test_httpx_sends_where_it_knows_better(monkeypatch):
    assert isinstance(transport_to("http://archive"), FileTransport)
    assert transport_to("https://archive") is None
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    assert transport_to("http://archive") is None
