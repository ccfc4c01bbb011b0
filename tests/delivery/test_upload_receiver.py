"""What a receiver has finished goes to an archive by itself."""

import json

import pytest

from ministream.base import log
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


def test_the_files_of_the_last_window_are_sent(tmp_path, service, heard):
    output = tmp_path / "output"
    output.mkdir()
    for name in ("000060-recon.h5", "000120-recon.rows0-9.h5", "000120-recon.h5", "report.html"):
        (output / name).write_text(name)
    files = last_files([str(output / "000060-recon.h5"), str(output / "000120-recon.rows0-9.h5")])
    assert [file.name for file in files] == ["000120-recon.h5", "000120-recon.rows0-9.h5"]
    with Uploads(service.url, str(service.token_file)) as uploads:
        uploads.send(files, "scan_7")
        until(lambda: heard, "it is told how that went")
        assert heard[0]["event"] == "uploaded", json.dumps(heard)
        names = sorted(path.partition("/")[2] for path in service.files())
        assert names == ["scan_7/000120-recon.h5", "scan_7/000120-recon.rows0-9.h5"]


def test_what_could_not_be_sent_is_logged_with_the_command(tmp_path, service, heard):
    (tmp_path / "000060-recon.h5").write_text("x")
    with Uploads(service.url, "") as uploads:
        uploads.send([tmp_path / "000060-recon.h5"], "scan_7")
        until(lambda: heard, "it is told how that went")
    (event,) = heard
    assert "401" in event["reason"]
    assert event["by_hand"].startswith("delivery upload ")


def test_without_the_setting_nothing_is_sent(tmp_path, heard):
    with Uploads("", "") as uploads:
        uploads.send([tmp_path / "000060-recon.h5"], "scan_7")
    assert heard == []
    assert last_files([]) == []
