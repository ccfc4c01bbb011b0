"""What a receiver has finished goes to an archive by itself."""

import json
import socket
import sys
from pathlib import Path

import h5py
import pytest

from ministream.base import log
from ministream.base.errors import UserError
from receiver.uploads import Uploads, last_files
from tests.delivery.intake_service import intake
from tests.delivery.sync_programs import until


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with intake(tmp_path_factory.mktemp("intake")) as running:
        yield running


@pytest.fixture
def heard():
    events: list[dict] = []
    log.configure("receiver")
    with log.heard_by(events.append):
        yield events


def write(path: Path, scan: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.attrs["scan"] = scan
    return path


def ends(heard: list[dict]) -> list[str]:
    return [event["event"] for event in heard if "uploaded" in event["event"]]


def test_the_files_of_the_last_window_are_sent(tmp_path, service, heard):
    for name in ("000060-recon.h5", "000120-recon.rows0-9.h5", "000120-recon.h5", "report.html"):
        write(tmp_path / name, "scan_7")
    files = last_files(
        tmp_path, ["/as/mounted/elsewhere/000060-recon.h5", "/as/mounted/elsewhere/000120-recon.rows0-9.h5"]
    )
    assert [file.name for file in files] == ["000120-recon.h5", "000120-recon.rows0-9.h5"]
    with Uploads(service.url, str(service.token_file)) as uploads:
        uploads.send(files, "scan_7")
        until(lambda: len(ends(heard)) == 2, "it is told how that went")
    assert ends(heard) == ["uploaded"] * 2, json.dumps(heard)
    assert {event["service"] for event in heard} == {"receiver", "upload"}
    names = sorted(path.partition("/")[2] for path in service.files())
    assert names == ["scan_7/000120-recon.h5", "scan_7/000120-recon.rows0-9.h5"]


def test_a_file_that_the_next_scan_has_moved_is_found(tmp_path, service, heard):
    moved = write(tmp_path / "earlier/scan_8.1/000060-recon.h5", "scan_8")
    write(tmp_path / "earlier/scan_8/000060-recon.h5", "another")
    write(tmp_path / "000060-recon.h5", "scan_9")
    with Uploads(service.url, str(service.token_file)) as uploads:
        uploads.send([tmp_path / "000060-recon.h5"], "scan_8")
        until(lambda: ends(heard), "it is told how that went")
    (stored,) = [content for path, content in service.files().items() if "scan_8/" in path]
    assert stored == moved.read_bytes()


def test_what_could_not_be_sent_is_logged_with_the_command(tmp_path, service, heard):
    config = tmp_path / "settings.yaml"
    config.write_text("delivery_upload: {settle: 0}")
    write(tmp_path / "000060-recon.h5", "scan_7")
    with Uploads(service.url, "", config) as uploads:
        uploads.send([tmp_path / "000060-recon.h5"], "scan_7")
        until(lambda: ends(heard), "it is told how that went")
    event = heard[-1]
    assert "401" in event["reason"]
    assert event["by_hand"].startswith(f"delivery upload {tmp_path}/000060-recon.h5 --config={config} --below=scan_7 ")


def test_what_waits_when_the_receiver_ends_is_told(tmp_path, heard, monkeypatch):
    monkeypatch.setattr("receiver.uploads.GRACE", 0)
    files = [write(tmp_path / f"00000{number}-recon.h5", "scan_7") for number in range(2)]
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        Uploads(f"http://127.0.0.1:{silent.getsockname()[1]}", "") as uploads,
    ):
        uploads.send(files, "scan_7")
    assert [event["reason"] for event in heard] == ["the receiver has ended"] * 2


def test_where_delivery_is_not_installed_the_setting_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "delivery.upload.client", None)
    with pytest.raises(UserError, match=r"--upload: .*pip install 'mini-stream\[delivery\]'"):
        Uploads("http://archive", "")


def test_without_the_setting_nothing_is_sent(tmp_path, heard):
    with Uploads("", "") as uploads:
        uploads.send([tmp_path / "000060-recon.h5"], "scan_7")
    assert heard == []
    assert last_files(tmp_path, []) == []
