"""`delivery download` as people run it: from a shell, over lines that break, against services that restart."""

import json
import os
import random
import subprocess
import sys
from itertools import pairwise

import httpx
import pytest

from delivery.client import Download
from delivery.tickets.settings import DownloadSettings
from tests.delivery.sync_programs import ROOT, Line, bytes_sent
from tests.delivery.ticket_service import PASSWORD, contents, ticket_service

BIG = 9_000_000

CUTS, MANY_CUTS = 5, 100

STRETCH = 3_000_000
"""Bytes between two cuts, more or less."""

IN_FLIGHT = 6_500_000
"""Bytes that a service may send in vain before a cut: two blocks, and 4 MiB that Linux lets a socket hold."""


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with ticket_service(tmp_path_factory.mktemp("download"), "--licence", "1 day", "--space", "1GB") as running:
        yield running


def run(service, output, *words, url=""):
    return subprocess.run(
        [sys.executable, "-m", "delivery", "download", *map(str, words), "-o", output, "--url", url or service.url],
        capture_output=True, text=True, cwd=ROOT, timeout=100, check=False,
    )  # fmt: skip


def test_somebody_logs_in_and_gets_all_that_was_asked_for_verified_and_unpacked(service, tmp_path):
    files = {name: service.write(name, size) for name, size in {"s/1.h5": 100_000, "s/2.h5": 0, "t.h5": 10}.items()}
    service.client().post("/register", json={"name": "ada", "password": PASSWORD}).raise_for_status()
    (tmp_path / "password").write_text(PASSWORD)
    who = "--user", "ada", "--password-file", tmp_path / "password"
    for copy in ("--prepare", "--no-prepare"):
        output = tmp_path / copy
        ended = run(service, output, "s/", "t.h5", *who, copy, "--volume", "100kB")
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert {str(p.relative_to(output)): p.read_bytes() for p in output.rglob("*") if p.is_file()} == files
    assert PASSWORD not in ended.stdout + ended.stderr


@pytest.mark.parametrize("patience", ["1 minute", "0 s"])
def test_cut_again_and_again_it_goes_on_where_it_was(service, tmp_path, patience):
    content = service.write(f"big {patience}.h5", BIG)
    (tmp_path / "token").write_text(service.token)
    limits = iter([BIG // 3] * 2)
    line = Line(service.url, lambda _head: next(limits, None))
    output, runs = tmp_path / "out", 1
    words = f"big {patience}.h5", "--token-file", tmp_path / "token", "--patience", patience
    while (ended := run(service, output, *words, url=line.api.rstrip("/"))).returncode:
        assert list(output.glob(".*.part")), ended.stdout + ended.stderr
        runs += 1
    line.close()
    assert (runs > 1) == (patience == "0 s")
    assert {path.name: path.read_bytes() for path in output.iterdir()} == {f"big {patience}.h5": content}
    assert sum(line.carried) < BIG + 100_000  # nothing but a few answers twice


@pytest.mark.parametrize("cuts", [CUTS, pytest.param(MANY_CUTS, marks=pytest.mark.faults)])
def test_a_result_that_is_cut_at_random_bytes_comes_whole_and_nothing_twice(service, tmp_path, cuts):
    content = service.write("cut.h5", cuts * STRETCH)
    ticket = service.ask("cut.h5")
    length = service.until(ticket, "ready")["volumes"][0]["length"]
    chance, before = random.Random(cuts), bytes_sent(service.url)
    points = sorted(chance.sample(range(1, length), cuts))
    limits = iter([b - a for a, b in pairwise([0, *points])])
    line = Line(service.url, lambda head: next(limits, None) if b"application/zip" in head else None)
    settings = DownloadSettings(paths=("cut.h5",), output=tmp_path, service=line.api, unpack=False)
    headers = {"Authorization": f"Bearer {service.token}", "Connection": "close"}
    with httpx.Client(base_url=line.api, headers=headers) as client:
        Download(settings, client).run()
    line.close()
    (archive,) = tmp_path.glob("*.zip")
    assert contents(archive.read_bytes()) == {"cut.h5": content}
    assert len([size for size in line.carried if size > 2000]) >= cuts
    assert length <= sum(line.carried) < length + 10_000  # and what was said of the ticket
    sent = bytes_sent(service.url) - before
    print(f"{cuts} cuts of {length} bytes: the service sent {sent - length} more, {(sent - length) // cuts} for each")
    assert sent - length < cuts * IN_FLIGHT


def test_what_cannot_be_had_is_said_in_one_line(service, tmp_path):
    (tmp_path / "token").write_text(service.token)
    ended = run(service, tmp_path / "out", "nothing.h5", "--token-file", tmp_path / "token")
    assert (ended.returncode, "nothing.h5" in ended.stdout + ended.stderr) == (2, True)
    assert run(service, tmp_path / "out").returncode == 2
    (tmp_path / "token").write_text("foreign")
    ended = run(service, tmp_path / "out", "nothing.h5", "--token-file", tmp_path / "token")
    assert "401" in ended.stdout + ended.stderr


def test_what_arrives_damaged_is_not_kept(service, tmp_path):
    service.write("damaged.h5", 1000)
    (tmp_path / "token").write_text(service.token)
    ticket = service.ask("damaged.h5")
    volume = service.until(ticket, "ready")["volumes"][0]
    output = tmp_path / "out"
    output.mkdir()
    request = {"paths": ["damaged.h5"], "priority": 3, "keep": None, "volume": 0, "prepare": True}
    note = {"service": service.url, "request": request, "ticket": ticket}
    (output / ".delivery-download.json").write_text(json.dumps(note))
    (output / f".{volume['name']}.part").write_bytes(os.urandom(500))
    ended = run(service, output, "damaged.h5", "--token-file", tmp_path / "token")
    assert (ended.returncode, "did not arrive" in ended.stdout + ended.stderr) == (2, True)
    assert run(service, output, "damaged.h5", "--token-file", tmp_path / "token").returncode == 0
    assert (output / "damaged.h5").stat().st_size == 1000
