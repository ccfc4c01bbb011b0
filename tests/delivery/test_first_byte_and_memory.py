"""What large requests cost: the time to the first byte of ten thousand files, and the memory that huge ones take.

Files of the huge ones are sparse: they have their size without taking it on disk.
"""

import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest

from delivery.people.tokens import TokenFile
from tests.delivery.sync_programs import Program, address, broker_command, program, server_command
from tests.delivery.ticket_service import ticket_service

MANY = 10_000
FIRST_BYTE = 0.1
"""Seconds; of the best of a few requests, since other tests run beside this one."""

MEMORY = 150e6
"""Bytes that a program may hold at most."""

GB = 1_000_000_000
SIZES = [GB // 4, pytest.param(50 * GB, marks=pytest.mark.soak)]
KEPT_SIZES = [GB // 5, pytest.param(5 * GB, marks=pytest.mark.soak)]
"""Of what is written to a real disk, too."""

BLOCK = 1 << 20

WATCH = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""
"""What starts a program and tells how much it held: a process's record begins with what its parent held, and the
tests' process holds much by then."""


class Answer:
    """A request of which every byte is counted and dropped.

    Attributes
    ----------
    first
        Seconds from the request to the first byte of the answer.
    received, length
        Bytes of its body, and how many were announced.
    """

    def __init__(self, url: str, token: str = "") -> None:
        place = httpx.URL(url)
        request = f"GET {place.raw_path.decode()} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n"
        buffer = memoryview(bytearray(BLOCK))
        with socket.create_connection((place.host, place.port)) as connection:
            began = time.perf_counter()
            connection.sendall(f"{request}Authorization: Bearer {token}\r\n\r\n".encode())
            count = connection.recv_into(buffer)
            self.first = time.perf_counter() - began
            head, _, body = bytes(buffer[:count]).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            self.length = int(_fields(head)["content-length"])
            self.received = len(body)
            while count := connection.recv_into(buffer):
                self.received += count


def _fields(head: bytes) -> Mapping[str, str]:
    lines = (line.partition(": ") for line in head.decode().split("\r\n")[1:])
    return {name.lower(): value for name, _, value in lines}


def write_many(folder: Path) -> None:
    for number in range(MANY):
        file = folder / f"scan_{number // 100:03}" / f"recon_{number:05}.h5"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(number.to_bytes(4, "little") * 64)


def write_sparse(folder: Path, size: int) -> None:
    """Make five files of `size` bytes in all."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(5):
        with (folder / f"recon_{number}.h5").open("wb") as file:
            file.truncate(size // 5)


def best(url: str, tokens: list[str]) -> float:
    """Return the shortest time to a first byte of one request for each token."""
    times = [Answer(url, token).first for token in tokens]
    print(f"{url}: first byte after {[round(seconds * 1e3) for seconds in times]} ms")
    return min(times)


def peak(run: Program) -> int:
    """Return the most bytes that a process has held so far."""
    status = Path(f"/proc/{run.process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


@pytest.mark.soak  # the clock on the wall has no place beside other tests
def test_the_first_byte_of_ten_thousand_files_comes_at_once(tmp_path):
    media = tmp_path / "media"
    write_many(media / "head" / "bar")
    keys = TokenFile(tmp_path / "tokens.json")
    brokers = [keys.add(f"broker{number}", 600) for number in range(8)]
    with program(*server_command(media, "--tokens", tmp_path / "tokens.json"), folder=tmp_path) as server:
        url = f"{address(server)}/head/h5"
        Answer(url, brokers[0])  # digests are taken
        assert best(url, brokers[1:]) < FIRST_BYTE  # a new batch for each
        assert best(url, brokers) < FIRST_BYTE  # the one offered before
    with ticket_service(tmp_path, "--root", media / "head" / "bar") as service:
        for prepare in (True, False):
            ticket = service.ask("*.h5", prepare=prepare)
            service.until(ticket, "ready")
            assert best(f"{service.url}/ticket/{ticket}/result", [service.token] * 8) < FIRST_BYTE


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc tells of memory")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("size", SIZES)
def test_a_server_streams_huge_archives_in_little_memory(tmp_path, size):
    media = tmp_path / "media"
    write_sparse(media / "head" / "bar", size)
    with program(*server_command(media, "--insecure-no-auth"), folder=tmp_path) as server:
        answer = Answer(f"{address(server)}/head/h5")
        assert size < answer.received == answer.length
        print(f"sync server, {size / GB:g} GB: {peak(server) / 1e6:.0f} MB")
        assert peak(server) < MEMORY


@pytest.mark.timeout(900)
@pytest.mark.parametrize("size", SIZES)
def test_a_ticket_service_streams_huge_archives_in_little_memory(tmp_path, size):
    with ticket_service(tmp_path) as service:
        write_sparse(service.files, size)
        ticket = service.ask("*.h5", prepare=False)
        service.until(ticket, "ready", patience=600)
        answer = Answer(f"{service.url}/ticket/{ticket}/result", service.token)
        assert size < answer.received == answer.length
        print(f"ticket service, {size / GB:g} GB: {peak(service.process) / 1e6:.0f} MB")
        assert peak(service.process) < MEMORY


@pytest.mark.timeout(900)
@pytest.mark.parametrize("size", KEPT_SIZES)
def test_what_is_kept_takes_little_memory_on_its_way(tmp_path, size):
    """Prepared, fetched and unpacked by tickets, and by a broker."""
    media = tmp_path / "media"
    write_sparse(media / "head" / "bar", size)
    with ticket_service(tmp_path, "--root", media / "head" / "bar", "--space", "20GB") as service:
        (tmp_path / "token").write_text(service.token)
        command = "-m", "delivery", "download", "*.h5", "-o", tmp_path / "out", "--url", service.url
        assert held(*command, "--token-file", tmp_path / "token", folder=tmp_path) < MEMORY
        print(f"ticket service, with a copy of {size / GB:g} GB: {peak(service.process) / 1e6:.0f} MB")
        assert peak(service.process) < MEMORY
    with program(*server_command(media, "--insecure-no-auth"), folder=tmp_path) as server:
        command = broker_command(address(server), "head", tmp_path / "home", "--once", "--no-keep-zips")
        assert held(*command, folder=tmp_path) < MEMORY
    for folder in (tmp_path / "out", tmp_path / "home" / "head" / "download"):
        assert [file.stat().st_size for file in folder.glob("recon_*.h5")] == [size // 5] * 5


def held(*command: object, folder: Path) -> int:
    """Run a program to its end, which must be a good one, and return the most bytes that it held."""
    with program("-S", "-c", WATCH, sys.executable, *command, folder=folder) as run:
        assert run.process.wait() == 0, run.said()
        kilobytes = int(run.said().split()[-1])
    print(f"{Path(str(command[0])).stem} {command[2]}: {kilobytes * 1024 / 1e6:.0f} MB")
    return kilobytes * 1024
