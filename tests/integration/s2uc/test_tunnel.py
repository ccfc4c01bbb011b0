"""Tunnels of the user's client against servers of both generations: opened, refused, held, lost and released."""

import contextlib
import signal
import time
from concurrent import futures

import pytest

from ministream.base.lifecycle import StopFlag, Stopped
from s2cs import user
from s2cs.client import Gateway, GatewayError, Tunnel
from tests.integration.s2uc.servers import CERTIFICATE, OldServer, both, connect_arguments, make_certificate
from tests.sites import running

TOKEN = "secret-of-this-site"


def test_tunnel_relays_certificates_and_listeners(pair, ca, monkeypatch):
    monkeypatch.setattr("s2cs.client.HELLO_AFTER", 30.0)  # a server that has to wait for a processor is not an old one
    producer, a, consumer, b = pair
    with both(a, b, ca) as gateways, Tunnel(*gateways, ["127.0.0.1:9"], connections=2, rate=7) as tunnel:
        (inner,), (outer,) = producer.entries.values(), consumer.entries.values()
        assert list(tunnel.listeners) == outer["listeners"]
        (asked,), (told,) = producer.named("req"), producer.named("update")
        assert (asked.role, asked.num_conn, asked.rate, asked.encrypted) == ("PROD", 2, 7, True)
        assert list(asked.targets) == list(told.remote_listeners) == ["127.0.0.1:9"]
        assert told.peer_certificate == CERTIFICATE.format("consumer")
        (asked,), (told,) = consumer.named("req"), consumer.named("update")
        assert (asked.role, asked.greeted, list(asked.targets)) == ("CONS", True, [])
        assert list(told.remote_listeners) == inner["listeners"]
        assert told.peer_certificate == CERTIFICATE.format("producer")
        assert producer.named("hello") == consumer.named("hello") == []
        assert tunnel.probe() == ()
        assert tunnel.warnings == (f"producer gateway {a}: mind the gap", f"consumer gateway {b}: mind the gap")
    assert producer.entries == consumer.entries == {}


@pytest.mark.parametrize("refused", ["req", "update"])
@pytest.mark.parametrize("side", ["producer", "consumer"])
def test_refusal_of_one_side_rolls_back_the_other(pair, ca, side, refused):
    producer, a, consumer, b = pair
    server, address = (producer, a) if side == "producer" else (consumer, b)
    server.refuse[refused] = "the ports are exhausted"
    expected = f"^{side} gateway {address} refused {refused}: the ports are exhausted$"
    with both(a, b, ca) as gateways, pytest.raises(GatewayError, match=expected), Tunnel(*gateways, ["127.0.0.1:9"]):
        pass
    assert producer.entries == consumer.entries == {}


def test_refused_uid_does_not_release_the_session_that_has_it(pair, ca):
    producer, a, consumer, b = pair
    with both(a, b, ca) as gateways, Tunnel(*gateways, ["127.0.0.1:9"], uid="u"):
        with pytest.raises(GatewayError, match="Entry already found"):
            Tunnel(*gateways, ["127.0.0.1:9"], uid="u").open()
        assert list(producer.entries) == list(consumer.entries) == ["u"]


def test_old_servers_only_in_plaintext(serve, ca, capsys):
    (producer, a), (consumer, b) = serve(OldServer()), serve(OldServer())
    assert user.main(connect_arguments(a, b, ca, "--detach")) == user.EXIT_REFUSED
    error = capsys.readouterr().err
    assert error.startswith(f"s2uc: error: producer gateway {a} gave no certificate")
    assert "--plaintext" in error
    assert producer.entries == consumer.entries == {}

    assert user.main(connect_arguments(a, b, ca, "--detach", "--plaintext")) == 0
    shown = capsys.readouterr()
    ((uid, outer),) = consumer.entries.items()
    assert shown.out.splitlines() == [f"uid: {uid}", f"Listeners: {outer['listeners']}"]
    assert "warning: plaintext" in shown.err
    assert list(consumer.named("update")[-1].remote_listeners) == producer.entries[uid]["listeners"]
    producer.end(uid)  # that one side is over does not keep the other up
    assert user.main(["release", uid, "--s2cs", a, "--s2cs", b, "--ca", str(ca)]) == user.EXIT_REFUSED
    assert f"gateway {a} refused release: release request invalid" in capsys.readouterr().err
    assert consumer.entries == {}


def test_no_authority_no_call(pair, tmp_path, capsys):
    producer, a, consumer, b = pair
    stranger, _, _ = make_certificate(tmp_path, "stranger")
    assert user.main(connect_arguments(a, b, stranger)) == user.EXIT_UNREACHABLE
    error = capsys.readouterr().err
    for name in (f"producer gateway {a}", f"consumer gateway {b}"):
        assert f"{name} shows a certificate that {stranger} did not sign; name its authority's file with --ca" in error
    assert error.count("\n") == 1
    assert producer.calls == consumer.calls == []


def test_certificate_for_another_name(pair, ca):
    _, a, *_ = pair
    with (
        Gateway(a.replace("127.0.0.1", "127.0.0.2"), ca=[ca]) as gateway,  # the server is bound to .1 alone
        pytest.raises(GatewayError, match="cannot be reached"),
    ):
        gateway.list()
    with (
        Gateway(a.replace("127.0.0.1", "localhost"), ca=[ca]) as gateway,
        pytest.raises(GatewayError, match=r"shows a certificate for other names; address it by one of those"),
    ):
        gateway.list()


def test_wrong_token_names_the_side(pair, ca, monkeypatch, capsys):
    producer, a, consumer, b = pair
    producer.required = TOKEN
    monkeypatch.setenv("S2UC_TOKEN", "guess")
    assert user.main(connect_arguments(a, b, ca, "--detach")) == user.EXIT_REFUSED
    error = capsys.readouterr().err
    assert f"producer gateway {a} does not know you: Authentication token is invalid" in error
    assert "guess" not in error
    assert consumer.entries == {}
    monkeypatch.setenv("S2UC_TOKEN", TOKEN)
    assert user.main(connect_arguments(a, b, ca, "--detach")) == 0
    assert producer.tokens == {"guess", TOKEN}


def test_stored_token_is_sent_to_its_gateway_alone(pair, ca, tmp_path, capsys):
    producer, a, consumer, b = pair
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert user.main(["login", "--s2cs", a, "--token-file", str(tmp_path / "token")]) == 0
    assert user.main(connect_arguments(a, b, ca, "--detach")) == 0
    assert (producer.tokens, consumer.tokens) == ({TOKEN}, {""})
    assert user.main(["check-auth", "--ip", a]) == 0
    assert user.main(["logout"]) == 0
    assert user.main(["check-auth", "--ip", a]) == user.EXIT_REFUSED
    assert TOKEN not in "".join(capsys.readouterr())


def test_server_that_is_down_is_named(pair, ca, capsys):
    producer, a, consumer, b = pair
    consumer.stop()
    began = time.monotonic()
    assert user.main(connect_arguments(a, b, ca)) == user.EXIT_UNREACHABLE
    assert time.monotonic() - began < 15
    assert capsys.readouterr().err == f"s2uc: error: consumer gateway {b} cannot be reached: Connection refused\n"
    assert producer.entries == {}


def test_lease_is_renewed_and_its_end_noticed(pair, ca):
    producer, a, consumer, b = pair
    producer.lease = consumer.lease = 0.15
    with both(a, b, ca) as gateways:
        with Tunnel(*gateways, ["127.0.0.1:9"]) as tunnel:
            while min(len(producer.named("renew")), len(consumer.named("renew"))) < 3:
                assert not tunnel.lost
                time.sleep(0.01)
        renewals = len(producer.named("renew"))
        with pytest.raises(GatewayError, match=f"is lost: consumer gateway {b} refused renew"):
            hold_after(gateways, lambda tunnel: consumer.end(tunnel.uid))
    assert len(producer.named("renew")) > renewals
    assert producer.entries == consumer.entries == {}


def test_gateway_that_stays_away_longer_than_a_lease_is_lost(pair, ca):
    producer, a, consumer, b = pair
    producer.lease = consumer.lease = 0.3
    with both(a, b, ca) as gateways, pytest.raises(GatewayError, match=f"lost: consumer gateway {b}"):
        hold_after(gateways, lambda _tunnel: consumer.stop())
    assert producer.entries == {}


def hold_after(gateways: tuple[Gateway, Gateway], event) -> None:
    with Tunnel(*gateways, ["127.0.0.1:9"]) as tunnel:
        while not tunnel.lease:
            time.sleep(0.01)
        event(tunnel)
        tunnel.hold(StopFlag())


def test_old_servers_are_held_without_lease(serve, ca):
    (producer, a), (consumer, b) = serve(OldServer()), serve(OldServer())
    stop = StopFlag()
    with both(a, b, ca) as gateways, Tunnel(*gateways, ["127.0.0.1:9"], encrypted=False) as tunnel:
        tunnel._keeper.join(60)
        assert not tunnel._keeper.is_alive()
        stop.request("enough")
        with pytest.raises(Stopped, match="enough"):
            tunnel.hold(stop)
    assert (tunnel.lease, tunnel.lost) == (0, "")
    assert producer.entries == consumer.entries == {}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_releases(pair, ca, number):
    producer, a, consumer, b = pair
    with running(connect_arguments(a, b, ca)) as process:
        uid = process.stdout.readline().split()[1]
        assert process.stdout.readline() == f"Listeners: {consumer.entries[uid]['listeners']}\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert f"{signal.Signals(number).name}: released" in errors
    assert producer.entries == consumer.entries == {}


def test_signal_while_it_opens_rolls_back(pair, serve, ca):
    producer, a, _, _ = pair
    consumer, b = serve(OldServer())
    consumer.refuse["hello"] = "never"  # so that its request waits
    with running(connect_arguments(a, b, ca)) as process:
        while not (producer.entries and consumer.entries):
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == user.EXIT_STOPPED
    assert "stopped: SIGTERM" in errors
    assert producer.entries == consumer.entries == {}


def test_ten_tunnels_at_once(pair, ca):
    producer, a, consumer, b = pair
    with both(a, b, ca) as gateways, futures.ThreadPoolExecutor(10) as pool, contextlib.ExitStack() as stack:
        tunnels = list(pool.map(lambda i: stack.enter_context(Tunnel(*gateways, [f"10.0.0.{i}:80"])), range(10)))
        assert len({tunnel.uid for tunnel in tunnels}) == 10
        onward = {request.uid: list(request.remote_listeners) for request in consumer.named("update")}
        inward = {request.uid: list(request.remote_listeners) for request in producer.named("update")}
        for i, tunnel in enumerate(tunnels):
            assert list(tunnel.listeners) == consumer.entries[tunnel.uid]["listeners"]
            assert onward[tunnel.uid] == producer.entries[tunnel.uid]["listeners"]
            assert inward[tunnel.uid] == [f"10.0.0.{i}:80"]
    assert producer.entries == consumer.entries == {}
