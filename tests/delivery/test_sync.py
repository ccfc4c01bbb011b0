"""Server and broker as real programs: what is put on one side is on the other, once, whoever asks and however."""

import hashlib
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import httpx
import pytest

from delivery.people.tokens import TokenFile
from delivery.sync.settings import BrokerSettings
from ministream.base.errors import UserError
from tests.delivery.sync_programs import (
    ROOT,
    address,
    broker_command,
    files,
    free_port,
    packed,
    program,
    put,
    server_command,
    until,
)


def test_what_is_put_on_one_side_is_on_the_other_and_in_the_archive(tmp_path):
    media, home, keys = tmp_path / "media", tmp_path / "home", tmp_path / "keys" / "tokens.json"
    sent = put(media / "head" / "bar", one=os.urandom(3_000_000), two=b"", three=b"3")
    token = tmp_path / "token"
    token.write_text(TokenFile(keys).add("lab", 3600, ["head"]))
    with program(*server_command(media, "--tokens", keys), folder=tmp_path) as server:
        command = broker_command(address(server), "head", home, "--token-file", token, "--wait", 5)
        with program(*command, folder=tmp_path) as broker:
            broker.wait_for("unzipped")
            later = put(media / "head" / "bar", one=b"another version")
            broker.wait_for("unzipped(?s:.*)unzipped")
            todo = home / "head" / "download" / ".h5" / "todo"
            until(lambda: not list(todo.iterdir()), "all is processed")
            assert broker.stop() == 130
        assert server.stop() == 130
    got = files(home / "head" / "download")
    zips = [name for name in got if name.endswith(".zip")]
    assert {name: content for name, content in got.items() if name not in zips} == {**sent, **later}
    assert len(zips) == 2
    assert files(media / "head" / "bar") == {}
    archived = files(media / "head" / "archive")
    assert archived == {**sent, "one (2).h5": b"another version"}


def test_both_mounts_may_be_one_folder_and_what_came_is_never_offered(tmp_path):
    """Zips of zips, were they offered, would go round for ever."""
    media = tmp_path / "media"
    with zipfile.ZipFile(tmp_path / "inner.zip", "w") as inner:
        inner.writestr("a.txt", "a")
    (media / "head" / "bar").mkdir(parents=True)
    (tmp_path / "inner.zip").rename(media / "head" / "bar" / "inner.zip")
    environment = {
        "WORKSPACE": "any",
        "PROJECT": "head",
        "SERVER_HOST": "127.0.0.1",
        "SERVER_PORT": str(free_port()),
        "SERVER_MOUNT": str(media),
        "BROKER_MOUNT": str(media),
        "INTERVAL": "0.1",
        "EXT": "zip",
        "MINISTREAM_DELIVERY_SERVER_SETTLE": "0",
        "MINISTREAM_DELIVERY_SERVER_INSECURE_NO_AUTH": "yes",
    }
    environment["API_URL"] = f"http://127.0.0.1:{environment['SERVER_PORT']}/stream"
    with (
        program(ROOT / "pydash.py", folder=tmp_path, environment=environment) as server,
        program(ROOT / "scheduled_request.py", folder=tmp_path, environment=environment) as broker,
    ):
        broker.wait_for("unzipped")
        server.wait_for("(status=404.*(?s:.*)){3}")
        assert broker.said().count("unzipped") == 1
    names = sorted(files(media))
    assert names[0] == "head/archive/inner.zip"
    assert len(names) == 3
    assert names[2].startswith("head/download/zip_1files_")


def test_a_broker_waits_for_a_server_that_is_not_there(tmp_path):
    port = free_port()
    command = broker_command(f"http://127.0.0.1:{port}/stream", "head", tmp_path / "home")
    with program(*command, folder=tmp_path) as broker:
        broker.wait_for("will try again")
        sent = put(tmp_path / "media" / "head" / "bar", a=b"a")
        options = server_command(tmp_path / "media", "--insecure-no-auth", port=port)
        with program(*options, folder=tmp_path):
            broker.wait_for("unzipped")
    assert sent.items() <= files(tmp_path / "home" / "head" / "download").items()


def test_a_failed_hook_is_called_again_until_it_works(tmp_path):
    media, home = tmp_path / "media", tmp_path / "home"
    put(media / "head" / "bar", a=b"a")
    script = tmp_path / "hook.sh"
    script.write_text(f'cd {tmp_path} && test -e allowed && cp "$1" part && mv part processed\n')
    with program(*server_command(media, "--insecure-no-auth"), folder=tmp_path) as server:
        command = broker_command(address(server), "head", home, "--hook", f"sh {script}")
        with program(*command, folder=tmp_path) as broker:
            broker.wait_for("not processed")
            (tmp_path / "allowed").touch()
            until((tmp_path / "processed").exists, "the hook is called again")
            assert list(files(media / "head" / "archive")) == ["a.h5"]
            with program(*command, "--once", folder=tmp_path) as other:
                assert other.wait() == 2
                assert "another broker writes h5 files" in other.said()
    assert packed(tmp_path / "processed") == {"a.h5": hashlib.sha256(b"a").hexdigest()}


@pytest.mark.parametrize("project", ["", "../head", "/", "a/b", ".hidden", "x\n"])
def test_a_project_is_a_name(project):
    with pytest.raises(UserError, match="environment PROJECT: project: give a name"):
        BrokerSettings.load("delivery_broker", environment={"PROJECT": project or " "})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["pydash.py", "--datadir", "."], "--insecure-no-auth to answer everybody"),
        (["scheduled_request.py", "--project", "head", "--hook", "no_such:function"], "no_such:function"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_start(tmp_path, options, words):
    script, *rest = options
    run = subprocess.run(
        [sys.executable, ROOT / script, *rest], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 2
    assert words in run.stdout


def test_tokens_are_made_listed_and_revoked_by_command(tmp_path):
    def token(*words: str) -> str:
        command = [sys.executable, "-m", "delivery", "token", *words, "--tokens", str(tmp_path / "tokens.json")]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, cwd=ROOT).stdout

    made = token("add", "lab", "--projects", "head,hand").strip()
    assert stat.S_IMODE((tmp_path / "tokens.json").stat().st_mode) == 0o600
    assert made not in (tmp_path / "tokens.json").read_text()
    assert token("ls").split("\t")[::2] == ["lab", "head,hand\n"]
    known = TokenFile(tmp_path / "tokens.json")
    assert known.bearer(made) == "lab"
    token("revoke", "lab")
    assert known.bearer(made) is None


def test_a_token_is_good_for_a_while_and_in_a_private_file(tmp_path):
    now = [1000.0]
    tokens = TokenFile(tmp_path / "tokens.json", clock=lambda: now[0])
    token = tokens.add("lab", 10)
    assert tokens.bearer(token) == "lab"
    with pytest.raises(UserError, match="already"):
        tokens.add("lab", 10)
    now[0] = 1011
    assert tokens.bearer(token) is None
    assert tokens.holders("head") == set()
    assert tokens.add("lab", 10) != token
    (tmp_path / "tokens.json").chmod(0o644)
    with pytest.raises(UserError, match="open to others"):
        TokenFile(tmp_path / "tokens.json").bearer(token)


def test_the_receivers_output_is_offered_by_one_setting(tmp_path):
    output = tmp_path / "output"
    put(output, recon=b"volume")
    (tmp_path / "media").mkdir()
    options = "--insecure-no-auth", "--receiver-output", output, "--project", "live", "--no-require-acknowledgement"
    with program(*server_command(tmp_path / "media", *options), folder=tmp_path) as server:
        answer = httpx.get(f"{address(server)}/live/h5")
        assert answer.status_code == 200
        until(lambda: files(tmp_path / "media" / "live" / "archive"), "moved after the last byte")
    assert files(output) == {}
    Path(tmp_path / "all.zip").write_bytes(answer.content)
    assert list(packed(tmp_path / "all.zip")) == ["recon.h5"]
