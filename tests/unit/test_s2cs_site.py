"""A site's CA, certificate and first token: judged by openssl and by gRPC's own TLS."""

import asyncio
import contextlib
import ipaddress
import os
import ssl
import stat
import subprocess
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from ministream.base.errors import UserError
from ministream.base.units import parse_duration
from s2cs.auth.tokens import TokenFile
from s2cs.credentials import server_credentials
from s2cs.main import app
from s2cs.site import Site, init_site, renew_site, server_names

pytestmark = pytest.mark.needs("openssl")

NAMES = ["gate.example.org", "192.168.101.10", "fd00::11"]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return init_site(tmp_path / "site", NAMES)[0]


def verify(site: Site, *wanted: str) -> subprocess.CompletedProcess[str]:
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", str(site.ca), *wanted]
    return subprocess.run([*command, str(site.certificate)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "wanted",
    [
        ("-verify_hostname", "gate.example.org"),
        ("-verify_hostname", "localhost"),
        ("-verify_ip", "192.168.101.10"),
        ("-verify_ip", "fd00::11"),
        ("-verify_ip", "127.0.0.1"),
    ],
)
def test_openssl_verifies_the_chain_for_each_name(site: Site, wanted: tuple[str, str]) -> None:
    result = verify(site, *wanted)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("wanted", [("-verify_hostname", "example.org"), ("-verify_ip", "192.168.101.11")])
def test_openssl_refuses_the_certificate_for_another_name(site: Site, wanted: tuple[str, str]) -> None:
    assert verify(site, *wanted).returncode != 0


def test_keys_and_tokens_are_the_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        site, _ = init_site(tmp_path / "site", NAMES)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in site.folder.iterdir()}
    assert stat.S_IMODE(site.folder.stat().st_mode) == 0o700
    assert {n: m for n, m in modes.items() if m != 0o600} == {"ca.crt": 0o644, "server.crt": 0o644}
    assert {"ca.key", "server.key", "tokens.json"} <= modes.keys()


def test_the_first_token_is_good_and_shown_nowhere_else(tmp_path: Path) -> None:
    site, token = init_site(tmp_path / "site", NAMES, user="anna", lifetime=60)
    assert asyncio.run(TokenFile(site.tokens).identify(token)).subject == "anna"
    assert all(token.encode() not in path.read_bytes() for path in site.folder.iterdir())


@pytest.mark.parametrize(
    "name", ["0.0.0.0", "::", "[::]", "224.0.0.1", "*.example.org", "gate.example.org:5000", "a b", "", "999.1.1.1"]
)
def test_names_that_no_client_can_reach_are_refused_and_leave_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"reaches the gateway|neither a host name"):
        init_site(tmp_path / "site", ["gate.example.org", name])
    assert not (tmp_path / "site").exists()


def test_a_site_is_never_made_over_another_nor_in_an_open_folder(site: Site, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in site.folder.iterdir()}
    with pytest.raises(UserError, match=r"holds ca\.crt.* already"):
        init_site(site.folder, NAMES)
    assert {path: path.read_bytes() for path in site.folder.iterdir()} == before
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(UserError, match="open to others"):
        init_site(tmp_path / "open", NAMES)


def test_a_refused_user_leaves_no_half_made_site(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no name"):
        init_site(tmp_path / "site", NAMES, user="anna bell")
    init_site(tmp_path / "site", NAMES, user="anna")


def test_renewing_keeps_ca_key_and_names_and_takes_new_names(site: Site) -> None:
    kept = site.ca.read_bytes(), site.key.read_bytes(), site.tokens.read_bytes()
    old = x509.load_pem_x509_certificate(site.certificate.read_bytes())
    renew_site(site.folder)
    new = x509.load_pem_x509_certificate(site.certificate.read_bytes())
    assert old.serial_number != new.serial_number
    assert (site.ca.read_bytes(), site.key.read_bytes(), site.tokens.read_bytes()) == kept
    assert server_names(site)[:3] == [*NAMES[:2], str(ipaddress.ip_address(NAMES[2]))]
    assert verify(site, "-verify_hostname", "gate.example.org").returncode == 0
    renew_site(site.folder, ["other.example.org"])
    assert verify(site, "-verify_hostname", "other.example.org").returncode == 0
    assert verify(site, "-verify_hostname", "gate.example.org").returncode != 0


def test_renewing_says_what_is_missing_or_foreign(site: Site, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make a site with s2cs init"):
        renew_site(tmp_path / "nowhere")
    other, _ = init_site(tmp_path / "other", NAMES)
    site.ca_key.write_bytes(other.ca_key.read_bytes())
    with pytest.raises(UserError, match="is not the key of"):
        renew_site(site.folder)
    site.ca_key.write_text("nonsense")
    with pytest.raises(UserError, match="did not write"):
        renew_site(site.folder)


def test_a_running_server_shows_the_renewed_certificate_to_clients_of_the_ca(site: Site, tmp_path: Path) -> None:
    stranger, _ = init_site(tmp_path / "stranger", NAMES)

    def serial(port: int) -> int:
        pem = ssl.get_server_certificate(("127.0.0.1", port))
        return x509.load_pem_x509_certificate(pem.encode()).serial_number

    async def connects(port: int, roots: Path) -> bool:
        credentials = grpc.ssl_channel_credentials(roots.read_bytes())
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
            channel.get_state(try_to_connect=True)
            state = grpc.ChannelConnectivity.IDLE
            while state not in (grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE):
                await channel.wait_for_state_change(state)
                state = channel.get_state()
            return state is grpc.ChannelConnectivity.READY

    async def scenario() -> None:
        server = grpc.aio.server()
        port = server.add_secure_port("127.0.0.1:0", server_credentials(site.certificate, site.key))
        await server.start()
        try:
            before = await asyncio.to_thread(serial, port)
            renew_site(site.folder)
            after = await asyncio.to_thread(serial, port)
            assert before != after
            site.certificate.write_text("half a certif")  # the server keeps what it has
            assert await asyncio.to_thread(serial, port) == after
            assert await connects(port, site.ca)
            assert not await connects(port, stranger.ca)
        finally:
            await server.stop(None)

    asyncio.run(scenario())


def test_sciStreams_clients_may_use_the_servers_file_as_well(site: Site) -> None:  # noqa: N802
    assert site.certificate.read_bytes().endswith(site.ca.read_bytes())


@pytest.mark.parametrize(("missing", "text"), [("certificate", "server.crt"), ("key", "server.key")])
def test_server_files_that_cannot_be_read_are_named(site: Site, missing: str, text: str) -> None:
    getattr(site, missing).write_text("empty")
    with pytest.raises(UserError, match=f"{text} is no PEM file"):
        server_credentials(site.certificate, site.key)
    getattr(site, missing).unlink()
    with pytest.raises(UserError, match=f"{text}: No such file"):
        server_credentials(site.certificate, site.key)


def test_the_commands_tell_the_token_on_standard_output_alone(tmp_path: Path) -> None:
    folder = ["--folder", str(tmp_path / "site")]
    made = CliRunner().invoke(app, ["init", "gate.example.org", *folder, "--user", "anna"])
    assert made.exit_code == 0
    token = made.stdout.strip()
    tokens = TokenFile(tmp_path / "site" / "tokens.json")
    assert asyncio.run(tokens.identify(token)).subject == "anna"
    assert token not in made.stderr
    second = CliRunner().invoke(app, ["token", "add", "bob", "--expires", "2 days", *folder])
    assert asyncio.run(tokens.identify(second.stdout.strip())).subject == "bob"
    listed = CliRunner().invoke(app, ["token", "list", *folder])
    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["anna", "bob"]
    assert "s2cs_" not in listed.output
    assert CliRunner().invoke(app, ["token", "revoke", "bob", *folder]).exit_code == 0
    assert [entry.name for entry in tokens.entries()] == ["anna"]
    old = (tmp_path / "site" / "server.crt").read_bytes()
    assert CliRunner().invoke(app, ["init", "--renew", *folder]).exit_code == 0
    assert (tmp_path / "site" / "server.crt").read_bytes() != old


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["init", "0.0.0.0"], "nobody reaches the gateway at 0.0.0.0"),
        (["token", "add", "bob", "--expires", "soon"], "no duration"),
        (["token", "revoke", "bob"], "bob has no token"),
    ],
)
def test_the_commands_tell_mistakes_in_one_line(tmp_path: Path, arguments: list[str], text: str) -> None:
    result = CliRunner().invoke(app, [*arguments, "--folder", str(tmp_path / "site")])
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert text in result.stderr


UNITS = {"s": 1, "seconds": 1, "min": 60, "m": 60, "h": 3600, "hours": 3600, "d": 86400, "days": 86400, "weeks": 604800}


@given(st.lists(st.tuples(st.integers(0, 10**6), st.sampled_from(sorted(UNITS))), min_size=1, max_size=4), st.data())
@settings(deadline=None, max_examples=50)
def test_durations_add_up_however_they_are_spaced(parts: list[tuple[int, str]], data: st.DataObject) -> None:
    blank = st.sampled_from(["", " ", "  "])
    text = "".join(f"{n}{data.draw(blank)}{unit}{data.draw(blank)}" for n, unit in parts)
    assert parse_duration(text) == sum(n * UNITS[unit] for n, unit in parts)


@given(st.text(max_size=12) | st.floats() | st.none() | st.booleans())
@settings(deadline=None, max_examples=100)
def test_what_is_no_duration_is_refused_and_never_negative_or_endless(value: object) -> None:
    with contextlib.suppress(UserError):
        assert 0 <= parse_duration(value) < float("inf")
