"""`delivery download` as people run it: from a shell, over lines that break, against services that restart."""

import json
import os
import subprocess
import sys

import pytest

from tests.delivery.sync_programs import ROOT, Line
from tests.delivery.ticket_service import PASSWORD, ticket_service

BIG = 9_000_000


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with ticket_service(tmp_path_factory.mktemp("download"), "--licence", "1 day", "--space", "200MB") as running:
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
    line = Line(service.url, lambda: next(limits, None))
    output, runs = tmp_path / "out", 1
    words = f"big {patience}.h5", "--token-file", tmp_path / "token", "--patience", patience
    while (ended := run(service, output, *words, url=line.api.rstrip("/"))).returncode:
        assert list(output.glob(".*.part")), ended.stdout + ended.stderr
        runs += 1
    line.close()
    assert (runs > 1) == (patience == "0 s")
    assert {path.name: path.read_bytes() for path in output.iterdir()} == {f"big {patience}.h5": content}
    assert sum(line.carried) < BIG + 100_000  # nothing but a few answers twice


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
