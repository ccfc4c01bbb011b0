"""The user's client without a server: its words, its tokens, and the look through a listener."""

import io
import json
import socket
import stat
import subprocess
import sys
import threading
from base64 import urlsafe_b64encode
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ministream.base.errors import UserError
from s2cs import logins, user
from s2cs.client import Gateway, Tunnel, probe


@pytest.fixture(autouse=True)
def _own_tokens(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("S2UC_TOKEN", raising=False)


def parse(*arguments: str):
    return user._build_parser().parse_args(user._with_dashes(arguments))


@pytest.mark.parametrize("command", ["inbound-request", "inbound_request"])
@pytest.mark.parametrize("dash", ["-", "_"])
def test_both_spellings(command, dash):
    parsed = parse(
        command, f"--num{dash}conn=3", f"--remote{dash}ip", "a_b", f"--receiver{dash}ports", "1", "--mock", "True"
    )
    assert (parsed.num_conn, parsed.remote_ip, parsed.receiver_ports, parsed.mock) == (3, "a_b", "1", True)


def test_scistream_defaults():
    parsed = parse("inbound-request")
    assert (parsed.s2cs, parsed.remote_ip, parsed.num_conn) == ("localhost:5000", "localhost", 5)
    assert parsed.receiver_ports == "5074,5075,5076,37000,47000"
    assert parse("outbound-request", "uid", "h:1").s2cs == "localhost:6000"
    assert parse("prod-req", "--mock", "False").mock is False


def test_options_may_stand_between_the_arguments():
    parsed = parse("outbound-request", "my_uid", "--receiver_ports=5100", "--server_cert=my_server.crt", "h_1:5100")
    assert (parsed.uid, parsed.prod_lstn, str(parsed.ca[0])) == ("my_uid", "h_1:5100", "my_server.crt")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("h:5074", ["h:5074"]),
        ("h:5074,5075", ["h:5074", "h:5075"]),
        ("h:1,k:2,3", ["h:1", "k:2", "k:3"]),
        ("[::1]:1,2", ["[::1]:1", "[::1]:2"]),
    ],
)
def test_targets(text, expected):
    assert user._targets(text) == expected


@pytest.mark.parametrize("text", ["h", "5074", "h:x", "h:0", "h:1,70000", ":1"])
def test_targets_that_are_none(text):
    with pytest.raises(UserError, match=r"is no address|no valid port"):
        user._targets(text)


def test_a_wrong_target_is_an_error_before_anybody_is_called(capsys):
    assert user.main(["connect", "--target", "here"]) == user.EXIT_REFUSED
    assert capsys.readouterr().err == "s2uc: error: 'here' is no address: give HOST:PORT, such as 192.168.100.10:5560\n"


def test_a_tunnel_needs_a_target():
    with pytest.raises(UserError, match="needs a target"):
        Tunnel(None, None, [])


def test_no_token_without_tls():
    with pytest.raises(UserError, match="a token is sent over TLS only"):
        Gateway("127.0.0.1:1", token="t", tls=False)


def test_missing_or_wrong_authority(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.crt: No such file"):
        Gateway("127.0.0.1:1", ca=[tmp_path / "nowhere.crt"])
    (tmp_path / "key").write_text("no certificate")
    with pytest.raises(UserError, match="no PEM certificate"):
        Gateway("127.0.0.1:1", ca=[tmp_path / "key"])


def test_tokens_are_private_and_found_by_place():
    logins.store("gate:5000", "a")
    logins.store("gate", "b")
    path = logins.tokens_file()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    connect = ("connect", "--target", "h:1")
    assert user._token(parse(*connect), "gate:5000") == "a"
    assert user._token(parse(*connect), "gate:6000") == "b"
    assert user._token(parse(*connect), "other:5000") == ""
    assert user._token(parse(*connect, "--no-ssl"), "gate:5000") == ""
    assert logins.forget("gate:5000") == 1
    assert logins.forget() == 1
    assert logins.load() == {}


def test_the_nearest_token_wins(tmp_path, monkeypatch):
    logins.store("gate:5000", "stored")
    logins.store("some-scope", "scoped")
    (tmp_path / "token").write_text("from-file\n")
    connect = ("connect", "--target", "h:1")
    assert user._token(parse(*connect, "--scope", "some-scope"), "gate:5000") == "scoped"
    monkeypatch.setenv("S2UC_TOKEN", "from-environment")
    assert user._token(parse(*connect), "gate:5000") == "from-environment"
    assert user._token(parse(*connect, "--token-file", str(tmp_path / "token")), "gate:5000") == "from-file"


@settings(deadline=None)
@given(st.text())
def test_tokens_that_could_break_a_header_are_refused_unseen(text):
    clean = text.strip()
    if clean and all(33 <= ord(c) < 127 for c in clean):
        assert logins.check_token(text) == clean
    else:
        with pytest.raises(UserError, match=r"^that is no token: one word of printable ASCII is expected$"):
            logins.check_token(text)


def test_login_reads_the_token_of_a_pipe(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("piped-token\n"))
    assert user.main(["login", "--s2cs", "gate:5000"]) == 0
    assert logins.load() == {"gate:5000": "piped-token"}
    assert user.main(["check-auth", "--ip", "gate:5000", "--show-token"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "Access Token for address 'gate:5000': piped-token"
    assert user.main(["logout", "--s2cs", "gate:6000"]) == user.EXIT_REFUSED


def test_a_damaged_token_file_is_named():
    logins.store("gate", "a")
    logins.tokens_file().write_text("{")
    with pytest.raises(UserError, match=r"tokens\.json cannot be read"):
        logins.load()


class Globus(BaseHTTPRequestHandler):
    """The token call of Globus Auth, for the code `right`."""

    def do_POST(self):
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.server.forms.append(form)
        self.send_response(200 if form["code"] == ["right"] else 401)
        self.end_headers()
        if form["code"] == ["right"]:
            others = [{"resource_server": "my-scope", "access_token": "globus-token"}]
            answer = {"resource_server": "auth.globus.org", "access_token": "not-this", "other_tokens": others}
            self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def globus():
    server = HTTPServer(("127.0.0.1", 0), Globus)
    server.forms = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_globus_login_exchanges_the_code_and_proves_who_asked(globus):
    pages = []
    base = f"http://127.0.0.1:{globus.server_port}"
    token = logins.globus_login("my-scope", lambda page: pages.append(page) or " right\n", base)
    assert token == "globus-token"
    asked, (form,) = parse_qs(urlsplit(pages[0]).query), globus.forms
    assert asked["scope"] == ["https://auth.globus.org/scopes/my-scope/scistream"]
    assert asked["client_id"] == form["client_id"] == [logins.GLOBUS_CLIENT]
    digest = sha256(form["code_verifier"][0].encode()).digest()
    assert asked["code_challenge"] == [urlsafe_b64encode(digest).rstrip(b"=").decode()]
    with pytest.raises(UserError, match="Globus refused: 401"):
        logins.globus_login("my-scope", lambda _: "wrong", base)
    with pytest.raises(UserError, match="no token for the scope another"):
        logins.globus_login("another", lambda _: "right", base)


def test_probe_tells_the_silent_from_the_absent():
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        socket.create_server(("127.0.0.1", 0)) as talking,
        socket.create_server(("127.0.0.1", 0)) as closing,
        socket.socket() as absent,
    ):
        absent.bind(("127.0.0.1", 0))
        first, *others = [f"127.0.0.1:{s.getsockname()[1]}" for s in (silent, talking, closing, absent)]
        assert probe([first], window=0.5) == ()

        def answer():
            with talking.accept()[0] as connection:
                connection.send(b"hello")
            closing.accept()[0].close()

        thread = threading.Thread(target=answer)
        thread.start()
        complaints = probe(others, window=30)
        thread.join()
    assert complaints == (
        f"listener {others[2]} cannot be reached from here: Connection refused",
        f"the service behind listener {others[1]} does not answer yet",
    )


def test_nothing_heavy_is_imported_to_read_the_command_line():
    code = "import sys, s2cs.user; s2cs.user._build_parser(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"grpc", "pydantic", "typer", "structlog", "asyncio", "yaml"} & set(loaded)


def test_a_client_imports_grpc_and_nothing_else_that_is_heavy():
    code = "import sys, s2cs.client; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "grpc" in loaded
    assert not {"pydantic", "typer", "structlog", "cryptography", "yaml"} & set(loaded)
