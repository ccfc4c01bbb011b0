import datetime
import subprocess
import sys
from pathlib import Path

import pytest

from ministream.base.errors import UserError
from s2cs import trust
from s2cs.addresses import Address
from s2cs.dataservers import rendering
from s2cs.dataservers.kinds import proxy_kind
from s2cs.dataservers.spec import ProxySpec, Tls
from s2cs.trust import check_peer_certificate, make_session_keys, write_private

pytestmark = pytest.mark.needs("haproxy", "nginx", "stunnel", "sshd")

HERE = Address("127.0.0.1", 5100)
THERE = Address("192.168.100.10", 5560)


def make_spec(folder: Path, *, side: str | None = "server", rate: int = 0, pairs=((HERE, THERE),)) -> ProxySpec:
    folder.mkdir(mode=0o700, exist_ok=True)
    keys = make_session_keys(folder, "own")
    write_private(folder / "peer.crt", keys.pem.encode())
    tls = Tls(side, keys.certificate, keys.key, folder / "peer.crt") if side else None
    return ProxySpec(uid="u", folder=folder, pairs=pairs, tls=tls, rate=rate)


@pytest.mark.parametrize("kind", ["haproxy", "nginx", "stunnel", "ssh"])
@pytest.mark.parametrize("side", ["server", "client"])
def test_a_configuration_listens_on_the_given_addresses_only_and_names_each_target(tmp_path, kind, side):
    pairs = tuple((Address("127.0.0.1", 5100 + i), Address("192.168.100.10", 5560 + i)) for i in range(3))
    text = "".join(proxy_kind(kind)[1].render(make_spec(tmp_path, side=side, pairs=pairs)).values())
    for listener, target in pairs:
        assert str(listener) in text
        assert str(target) in text
    assert "0.0.0.0" not in text
    assert "*:" not in text


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("haproxy", ["ssl-min-ver TLSv1.3", "verify required", "timeout tunnel 1728000s", "clitcpka-idle 30s"]),
        (
            "nginx",
            ["ssl_protocols TLSv1.3;", "ssl_verify_client on;", "proxy_timeout 1728000s;", "so_keepalive=30s:10s:3"],
        ),
        ("stunnel", ["sslVersion = TLSv1.3", "verifyPeer = yes", "TIMEOUTidle = 1728000", "TCP_KEEPIDLE=30"]),
        ("ssh", ["AuthenticationMethods publickey", "PermitOpen 192.168.100.10:5560\n", "restrict,port-forwarding,"]),
    ],
)
def test_the_inbound_side_asks_for_the_peer_s_certificate_and_cuts_no_silent_stream(tmp_path, kind, wanted):
    text = "".join(proxy_kind(kind)[1].render(make_spec(tmp_path)).values())
    for line in wanted:
        assert line in text


@pytest.mark.parametrize("kind", ["stunnel", "ssh"])
def test_what_always_encrypts_refuses_plaintext(tmp_path, kind):
    with pytest.raises(UserError, match=f"{kind} cannot be plaintext"):
        proxy_kind(kind)[1].render(make_spec(tmp_path, side=None))


def test_a_rate_is_shared_by_the_connections_and_only_nginx_says_that_it_can(tmp_path):
    pairs = tuple((Address("127.0.0.1", 5100 + i), THERE) for i in range(4))
    text = proxy_kind("nginx")[1].render(make_spec(tmp_path, pairs=pairs, rate=1_000_001))["nginx.conf"]
    assert "proxy_download_rate 250001;" in text
    assert "proxy_upload_rate 250001;" in text
    assert "limit_conn session 4;" in text
    assert [k for k in ("haproxy", "nginx", "stunnel", "ssh") if proxy_kind(k)[1].supports_rate] == ["nginx"]


@pytest.mark.parametrize("host", ["a b", "a;b", "a\nb", "a{", "a'", 'a"', "a#", "$a", "", "a\\", "a%h"])
def test_an_address_that_could_mean_more_in_a_configuration_is_refused(tmp_path, host):
    with pytest.raises(UserError, match="no address"):
        ProxySpec("u", tmp_path, ((HERE, Address(host, 1)),))


@pytest.mark.parametrize("folder", ["/state/a b", "/state/%h", "relative", '/state/"', "/state/a;b", "/state/a\nb"])
def test_a_folder_that_could_mean_more_in_a_configuration_is_refused(folder):
    with pytest.raises(UserError, match="absolute path"):
        ProxySpec("u", Path(folder), ((HERE, THERE),))


def test_keys_outside_of_the_session_s_folder_are_refused(tmp_path):
    keys = make_session_keys(tmp_path)
    elsewhere = tmp_path / "session"
    with pytest.raises(ValueError, match="does not lie in"):
        ProxySpec("u", elsewhere, ((HERE, THERE),), Tls("server", keys.certificate, keys.key, keys.certificate))


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("Haproxy", "haproxy"),
        ("HaproxySubprocess", "haproxy"),
        ("StunnelSubprocess", "stunnel"),
        ("Nginx", "nginx"),
        ("Stunnel", "stunnel"),
        ("docker:nginx", "docker:nginx"),
        ("ssh", "ssh"),
    ],
)
def test_scistream_s_names_are_known(name, plain):
    found, kind, _ = proxy_kind(name)
    assert found == plain
    assert kind.name == plain.removeprefix("docker:")


@pytest.mark.parametrize("name", ["", "docker:", "mock", "JanusProxy", "docker:HaproxySubprocess", "subprocess"])
def test_an_unknown_name_is_an_error_that_tells_the_known_ones(name):
    with pytest.raises(UserError, match="haproxy, nginx, stunnel, ssh"):
        proxy_kind(name)


def test_a_missing_program_is_told_by_its_debian_package(monkeypatch):
    monkeypatch.setattr(rendering.shutil, "which", lambda *_args, **_kwargs: None)
    with pytest.raises(UserError, match="apt install stunnel4"):
        rendering.find_program("stunnel", "stunnel4")


def test_a_container_s_nginx_has_the_stream_module_built_in(tmp_path):
    assert "load_module" not in proxy_kind("docker:nginx")[1].render(make_spec(tmp_path))["nginx.conf"]


def test_neither_docker_s_sdk_nor_paramiko_is_imported_before_it_is_needed():
    code = "import sys, s2cs.dataservers.supervisor; sys.exit(any(m in sys.modules for m in ('docker', 'paramiko')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_session_keys_are_private_and_no_two_alike(tmp_path):
    first, second = make_session_keys(tmp_path, "a"), make_session_keys(tmp_path, "b")
    assert {p.stat().st_mode & 0o777 for p in (first.key, first.certificate, second.key)} == {0o600}
    assert first.pem != second.pem
    assert first.key.read_bytes() != second.key.read_bytes()
    assert check_peer_certificate(f"\n{first.pem}\n") == first.pem


def openssl(folder: Path, *arguments: str) -> str:
    base = ["openssl", "req", "-x509", "-nodes", "-keyout", folder / "k", "-out", folder / "c", "-batch"]
    subprocess.run([*base, *arguments], check=True, capture_output=True)
    return (folder / "c").read_text()


P256 = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")
NAMED = ("-subj", "/CN=s2cs-session/UID=x", "-addext", "subjectAltName=DNS:s2cs-session")
LEAF = ("-addext", "basicConstraints=critical,CA:FALSE")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("-newkey", "rsa:2048", *NAMED, *LEAF), "not an ECDSA key"),
        ((*P256, *NAMED), "may sign other certificates"),
        ((*P256, *LEAF, "-subj", "/CN=s2cs-session/UID=x", "-addext", "subjectAltName=DNS:other"), "name is not"),
        ((*P256, *LEAF, "-subj", "/CN=x", "-addext", "subjectAltName=DNS:s2cs-session"), "names no account"),
    ],
)
def test_a_certificate_that_is_no_session_certificate_is_refused(tmp_path, arguments, reason):
    with pytest.raises(UserError, match=reason):
        check_peer_certificate(openssl(tmp_path, *arguments))


def test_a_certificate_that_has_run_out_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(trust, "VALIDITY", datetime.timedelta(minutes=-1))
    with pytest.raises(UserError, match="not valid now"):
        check_peer_certificate(make_session_keys(tmp_path).pem)


def test_openssl_s_own_session_certificate_is_accepted(tmp_path):
    assert check_peer_certificate(openssl(tmp_path, *P256, *NAMED, *LEAF, "-days", "1"))


def test_anything_but_exactly_one_certificate_is_refused(tmp_path):
    keys = make_session_keys(tmp_path)
    secret = keys.key.read_text()
    lines = keys.pem.splitlines(keepends=True)
    broken = "".join([*lines[:3], lines[3][::-1], *lines[4:]])
    for pem in (
        "",
        "x",
        keys.pem * 2,
        keys.pem + secret,
        secret,
        secret + keys.pem,
        broken,
        "é" + keys.pem,
        keys.pem[:200],
    ):
        with pytest.raises(UserError, match="certificate is refused"):
            check_peer_certificate(pem)
