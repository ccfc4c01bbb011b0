"""The user's client against real control servers with real proxies."""

import contextlib
import time
from collections.abc import Callable
from concurrent import futures

import pytest

from s2cs import logins, user
from s2cs.client import Tunnel, probe
from tests.sites import Site, converse, listeners_of, log_in, running, service, two_sites

pytestmark = pytest.mark.needs("haproxy")


def test_connect_carries_and_leaves_nothing(sites, logged_in):
    with service(b"lab") as target, running(["connect", *logged_in, "--target", target, "--num-conn", "2"]) as process:
        uid = process.stdout.readline().split()[1]
        listeners = listeners_of(process.stdout.readline())
        assert len(listeners) == 2
        assert [converse(listener, b"lab") for listener in listeners] == [b"a frame\n"] * 2
        assert [site.sessions() for site in sites] == [[uid], [uid]]
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "warning" not in errors
    assert [site.sessions() for site in sites] == [[], []]
    assert all(complaint.endswith("Connection refused") for complaint in probe(listeners))


def test_lease_ends_what_a_killed_client_held(tmp_path):
    with (
        two_sites(tmp_path, lease="9") as sites,  # renewed after 3 s: a client may wait for a processor twice as long
        service(b"lab") as target,
        running(["connect", *log_in(sites), "--target", target]) as process,
    ):
        uid = process.stdout.readline().split()[1]
        until(lambda: all(lease_left(site, uid) for site in sites), "the client holds no lease")
        ends = [lease_left(site, uid) + time.monotonic() for site in sites]  # at the latest
        for site, end in zip(sites, ends, strict=True):
            until(lambda site=site, end=end: time.monotonic() + lease_left(site, uid) > end, "no renewal")
        process.kill()
        until(lambda: not any(site.sessions() for site in sites), "nobody holds it, and it is there")


def lease_left(site: Site, uid: str) -> float:
    with site.gateway() as gateway:
        (session,) = gateway.list(uid)
    return session.lease_left_seconds


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)  # asking costs a handshake


@pytest.mark.usefixtures("logged_in")
def test_requests_of_each_side_as_scistream_makes_them(sites, capsys):
    a, b = sites
    with service(b"lab") as target:
        host, port = target.split(":")
        inbound = ["inbound-request", "--s2cs", a.address, "--server_cert", str(a.ca), "--num_conn", "2"]
        assert user.main([*inbound, "--remote_ip", host, "--receiver_ports", port]) == 0
        lines = capsys.readouterr().out.splitlines()
        uid, inner = lines[1].split()[0], listeners_of(lines[-1])
        outbound = ["outbound-request", "--s2cs", b.address, "--server_cert", str(b.ca), "--num_conn", "2"]
        assert user.main([*outbound, uid, ",".join(inner)]) == 0
        shown = capsys.readouterr()
        outer = listeners_of(shown.out.splitlines()[-1])
        assert "plaintext between the gateways" in shown.err
        assert [converse(listener, b"lab") for listener in outer] == [b"a frame\n"] * 2
        for site in sites:
            assert user.main(["release", uid, "--s2cs", site.address, "--ca", str(site.ca)]) == 0
    assert [site.sessions() for site in sites] == [[], []]


def test_ten_tunnels_at_once_each_to_its_own_service(sites):
    a, b = sites
    with contextlib.ExitStack() as stack, futures.ThreadPoolExecutor(10) as pool:
        names = [f"lab {i}".encode() for i in range(10)]
        targets = [stack.enter_context(service(name)) for name in names]
        gateways = stack.enter_context(a.gateway("producer")), stack.enter_context(b.gateway("consumer"))
        tunnels = list(pool.map(lambda target: stack.enter_context(Tunnel(*gateways, [target])), targets))
        answers = pool.map(lambda tunnel, name: converse(tunnel.listeners[0], name), tunnels, names)
        assert list(answers) == [b"a frame\n"] * 10
        assert set(a.sessions()) == set(b.sessions()) == {tunnel.uid for tunnel in tunnels}
    assert [site.sessions() for site in sites] == [[], []]


def test_token_of_the_other_site_is_refused(sites, logged_in, capsys):
    a, b = sites
    logins.store(b.address, a.token)
    assert user.main(["connect", *logged_in, "--target", "127.0.0.1:9"]) == user.EXIT_REFUSED
    error = capsys.readouterr().err
    assert error.startswith(f"s2uc: error: consumer gateway {b.address} does not know you: ")
    assert a.token not in error
    assert [site.sessions() for site in sites] == [[], []]
