"""The user's client against servers of both generations: SciStream's own behaviour, and ours."""

import ast
import contextlib
import datetime
import functools
import ipaddress
import itertools
import json
import os
import random
import re
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ministream.base.lifecycle import StopFlag, Stopped
from s2cs import logins, user
from s2cs.client import Gateway, GatewayError, Tunnel, probe
from s2cs.proto import scistream_pb2 as pb
from s2cs.proto import scistream_pb2_grpc as rpc

pytestmark = pytest.mark.needs("haproxy")

CERTIFICATE = "-----BEGIN CERTIFICATE-----\nof {}\n-----END CERTIFICATE-----\n"
TOKEN = "secret-of-this-site"


class OldServer(rpc.ControlServicer):
    """What an existing SciStream server does; the data plane is a socket that listens."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, object]] = []
        self.entries: dict[str, dict] = {}
        self.refuse: dict[str, str] = {}
        self.tokens: set[str] = set()
        self.required = ""
        self.held = threading.Event()
        self.held.set()

    def begin(self, name: str, request: object, context: grpc.ServicerContext) -> None:
        self.calls.append((name, request))
        token = dict(context.invocation_metadata()).get("authorization", "")
        self.tokens.add(token)
        if self.required and token != self.required:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "Authentication token is invalid for scope x")
        if name in self.refuse:
            raise RuntimeError(self.refuse[name])
        if name == "req" and request.uid in self.entries:
            raise RuntimeError("Entry already found for uid")
        if name not in ("req", "list") and request.uid not in self.entries:
            raise RuntimeError(f"{name} request invalid, entry not found for uid '{request.uid}'")

    def listen(self, request: pb.Request) -> dict:
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(request.num_conn)]
        listeners = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
        entry = {
            "sockets": sockets,
            "listeners": listeners,
            "greeted": threading.Event(),
            "targets": [],
            "role": request.role,
        }
        self.entries[request.uid] = entry
        return entry

    def req(self, request, context):
        self.held.wait(10)
        self.begin("req", request, context)
        entry = self.listen(request)
        assert entry["greeted"].wait(20)
        return pb.Response(listeners=entry["listeners"], prod_listeners=entry["targets"])

    def hello(self, request, context):
        self.begin("hello", request, context)
        entry = self.entries[request.uid]
        entry["targets"] = list(request.prod_listeners)
        entry["greeted"].set()
        return pb.AppResponse(message="Sending listeners...", listeners=entry["listeners"])

    def update(self, request, context):
        self.begin("update", request, context)
        return pb.Response(listeners=self.entries[request.uid]["listeners"], prod_listeners=request.remote_listeners)

    def release(self, request, context):
        self.begin("release", request, context)
        self.end(request.uid)
        return pb.Response()

    def end(self, uid: str) -> None:
        entry = self.entries.pop(uid)
        entry["greeted"].set()  # nobody waits for what is over
        for s in entry["sockets"]:
            s.close()

    def named(self, name: str) -> list:
        return [request for called, request in self.calls if called == name]


class OurServer(OldServer, rpc.GatewayServicer):
    """The fields and calls that ours adds."""

    name = "ours"
    lease = 0.0

    def req(self, request, context):
        self.begin("req", request, context)
        entry = self.listen(request)
        assert request.greeted
        certificate = CERTIFICATE.format(self.name) if request.encrypted else ""
        return pb.Response(
            listeners=entry["listeners"],
            prod_listeners=request.targets,
            certificate=certificate,
            warnings=["mind the gap"],
        )

    def renew(self, request, context):
        self.begin("renew", request, context)
        return pb.RenewReply(lease_seconds=self.lease)

    def list(self, request, context):
        self.begin("list", request, context)
        return pb.ListReply(
            sessions=[
                pb.SessionState(
                    uid=uid, role=e["role"], state="streaming", owner="ann", listeners=e["listeners"], bytes_in=42
                )
                for uid, e in self.entries.items()
                if request.uid in ("", uid)
            ]
        )


def make_certificate(folder: Path, name: str) -> tuple[Path, bytes, bytes]:
    """Return the file of a self-signed certificate for 127.0.0.1, its PEM and its key's."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / f"{name}.crt"
    path.write_bytes(pem)
    return path, pem, private


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return make_certificate(tmp_path_factory.mktemp("site"), "server")


@pytest.fixture
def ca(site) -> Path:
    return site[0]


@pytest.fixture
def serve(site):
    """Start servers over TLS; return (servicer, address) of each."""
    running = []

    def start(servicer):
        server = grpc.server(futures.ThreadPoolExecutor(32))
        rpc.add_ControlServicer_to_server(servicer, server)
        if isinstance(servicer, OurServer):
            rpc.add_GatewayServicer_to_server(servicer, server)
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(site[2], site[1])]))
        server.start()
        running.append((servicer, server))
        servicer.stop = lambda: server.stop(0).wait()
        return servicer, f"127.0.0.1:{port}"

    yield start
    for servicer, server in running:
        server.stop(0).wait()
        for uid in list(servicer.entries):
            servicer.end(uid)


@pytest.fixture(autouse=True)
def _untouched(tmp_path, monkeypatch):
    """Keep the user's tokens, signals and folder as they are."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("S2UC_TOKEN", raising=False)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def pair(serve):
    """Two servers of ours: (producer, its address, consumer, its address)."""
    producer, consumer = OurServer(), OurServer()
    producer.name, consumer.name = "producer", "consumer"
    return (*serve(producer), *serve(consumer))


@contextlib.contextmanager
def both(a: str, b: str, ca: Path, **options):
    with (
        Gateway(a, name="producer gateway", ca=[ca], **options) as producer,
        Gateway(b, name="consumer gateway", ca=[ca], **options) as consumer,
    ):
        yield producer, consumer


def connect_arguments(a: str, b: str, ca: Path, *more: str) -> list[str]:
    return ["connect", "--producer-s2cs", a, "--consumer-s2cs", b, "--target", "127.0.0.1:9,10", "--ca", str(ca), *more]


@contextlib.contextmanager
def running(arguments: list[str], **environment: str):
    """Run s2uc as a program; end it in any case."""
    process = subprocess.Popen(
        [sys.executable, "-m", "s2cs.user", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_inbound_request_prints_what_scripts_read(serve, ca, capsys):
    server, address = serve(OldServer())
    code = user.main(
        ["inbound_request", "--s2cs", address, "--server_cert", str(ca), "--remote_ip", "10.0.1.5",
         "--receiver_ports=5001,5002", "--num_conn", "3", "--mock", "True"]
    )  # fmt: skip
    out = capsys.readouterr().out
    listeners = server.entries[user.MOCK_UID]["listeners"]
    assert code == 0
    assert out.splitlines()[:2] == ["uid; s2cs; access_token; role", f"{user.MOCK_UID} {address} - PROD"]
    assert "Hello message sent successfully" in out
    assert re.findall(r'(?m)^listeners:\s*"([^"]+)"', out) == listeners
    assert re.findall(r'(?m)^prod_listeners:\s*"([^"]+)"', out) == ["10.0.1.5:5001", "10.0.1.5:5002"]
    assert out.splitlines()[-1] == f"Listeners: {listeners}"
    assert list(server.named("update")[0].remote_listeners) == ["10.0.1.5:5001", "10.0.1.5:5002"]
    assert server.named("update")[0].role == "PROD"


def test_hello_is_repeated_until_the_request_has_arrived(serve, ca):
    server, address = serve(OldServer())
    server.held.clear()
    with Gateway(address, ca=[ca]) as gateway, futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(gateway.req, "u", "PROD", connections=1, targets=["10.0.0.1:80"])
        while not server.named("hello"):  # the first one comes too early, and is failed
            time.sleep(0.01)
        server.held.set()
        assert list(answer.result(10).prod_listeners) == ["10.0.0.1:80"]
    assert len(server.named("hello")) > 1


def test_outbound_request_leads_to_the_listeners_given(serve, ca, capsys):
    server, address = serve(OldServer())
    code = user.main(
        ["outbound-request", "--remote_ip", "10.0.0.2", "--s2cs", address, "my-uid", "--receiver_ports=5100",
         "10.0.0.1:5100,10.0.0.1:5101,", "--server_cert", str(ca), "--num_conn=1", "--show-token"]
    )  # fmt: skip
    out = capsys.readouterr().out
    assert code == 0
    assert out.splitlines()[1] == f"my-uid {address} INVALID_TOKEN CONS"
    assert out.splitlines()[-1] == f"Listeners: {server.entries['my-uid']['listeners']}"
    (update,) = server.named("update")
    assert (update.role, list(update.remote_listeners)) == ("CONS", ["10.0.0.1:5100", "10.0.0.1:5101"])


def test_prod_req_waits_for_the_application(serve, ca, capsys):
    server, address = serve(OldServer())
    with Gateway(address, ca=[ca]) as application, futures.ThreadPoolExecutor(1) as pool:

        def greet():
            while user.MOCK_UID not in server.entries:
                time.sleep(0.01)
            return application.hello(user.MOCK_UID, "PROD", ["10.0.0.7:7000"])

        greeting = pool.submit(greet)
        assert user.main(["prod-req", "--s2cs", address, "--server-cert", str(ca), "--mock", "--num-conn", "1"]) == 0
        assert greeting.result(5).message
    assert list(server.named("update")[0].remote_listeners) == ["10.0.0.7:7000"]
    assert "Listeners: ['127.0.0.1:" in capsys.readouterr().out


def test_release(serve, ca, capsys):
    server, address = serve(OldServer())
    server.listen(pb.Request(uid="u", num_conn=1))
    command = ["release", "u", "--s2cs", address, "--server_cert", str(ca)]
    assert user.main(command) == 0
    assert server.entries == {}
    assert "Release completed" in capsys.readouterr().out
    assert user.main(command) == user.EXIT_REFUSED
    assert f"gateway {address} refused release" in capsys.readouterr().err


def test_update_that_is_refused_releases_the_request(serve, ca, capsys):
    server, address = serve(OldServer())
    server.refuse["update"] = "no such target"
    assert user.main(["inbound-request", "--s2cs", address, "--ca", str(ca)]) == user.EXIT_REFUSED
    assert server.entries == {}
    assert f"s2uc: error: gateway {address} refused update: no such target\n" in capsys.readouterr().err


def test_tunnel_relays_certificates_and_listeners(pair, ca):
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
    assert time.monotonic() - began < 3
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
        tunnel._keeper.join(5)
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
        _, errors = process.communicate(timeout=10)
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
        _, errors = process.communicate(timeout=10)
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


def test_status_and_ls(pair, serve, ca, capsys):
    _, a, consumer, b = pair
    assert user.main(connect_arguments(a, b, ca, "--detach", "--uid", "mine")) == 0
    capsys.readouterr()
    assert user.main(["ls", "--s2cs", a, "--s2cs", b, "--ca", str(ca)]) == 0
    rows = [row.split() for row in capsys.readouterr().out.splitlines()]
    assert rows[0][:4] == ["gateway", "uid", "role", "state"]
    assert [row[:4] for row in rows[1:]] == [[a, "mine", "PROD", "streaming"], [b, "mine", "CONS", "streaming"]]
    assert user.main(["status", "mine", "--s2cs", b, "--ca", str(ca)]) == 0
    facts = dict(re.split(r":\s*", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert facts["listeners"] == ",".join(consumer.entries["mine"]["listeners"])
    assert facts["traffic"] == "0 connections, 42 B in, 0 B out"
    assert user.main(["status", "other", "--s2cs", a, "--ca", str(ca)]) == user.EXIT_REFUSED
    assert "no session other" in capsys.readouterr().err
    _, old = serve(OldServer())
    assert user.main(["ls", "--s2cs", old, "--ca", str(ca)]) == user.EXIT_REFUSED
    assert f"gateway {old} has no call list: it is an existing SciStream server" in capsys.readouterr().err


def test_connect_starts_quickly(pair, ca):
    _, a, _, b = pair
    took = []
    for _ in range(3):
        began = time.monotonic()
        with running(connect_arguments(a, b, ca, "--detach")) as process:
            process.communicate(timeout=10)
        took.append(time.monotonic() - began)
        assert process.returncode == 0
    assert min(took) < 1.0  # 0.3 s on an idle machine; what it guards against is an import that doubles it


class Site:
    """A gateway as its operator runs it: a control server as a program, its CA and a token of its own."""

    def __init__(self, folder: Path) -> None:
        program = str(Path(sys.executable).with_name("s2cs"))
        made = subprocess.run(
            [program, "init", "127.0.0.1", "--folder", str(folder)], capture_output=True, text=True, check=True
        )
        self.token, self.ca = made.stdout.strip(), folder / "ca.crt"
        first = random.randrange(20000, 32000)
        options = {
            "--listener-ip": "127.0.0.1",
            "--port": "0",
            "--port-range": f"{first}-{first + 99}",
            "--server-crt": str(folder / "server.crt"),
            "--server-key": str(folder / "server.key"),
            "--tokens": str(folder / "tokens.json"),
            "--allow": "127.0.0.0/8:1-65535",
            "--state-dir": str(folder / "state"),
            "--lease": "2",
            "--log-format": "json",
            "--drain": "0",
        }
        command = [program, *itertools.chain.from_iterable(options.items()), "--plaintext"]
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log)

    @functools.cached_property
    def address(self) -> str:
        while not (served := [e for e in map(json.loads, self.log.read_text().splitlines()) if "address" in e]):
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.02)
        return served[0]["address"]

    def gateway(self, name: str = "gateway") -> Gateway:
        return Gateway(self.address, name=name, ca=[self.ca], token=self.token)

    def sessions(self) -> list[str]:
        with self.gateway() as gateway:
            return [session.uid for session in gateway.list()]


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    """The producer's site and the consumer's."""
    both = [Site(tmp_path_factory.mktemp(name)) for name in ("producer", "consumer")]
    yield both
    for site in both:
        site.process.terminate()
    for site in both:
        site.process.wait(20)


@pytest.fixture
def logged_in(sites):
    """What `connect` needs to be given after a login at both sites."""
    for site in sites:
        logins.store(site.address, site.token)
    a, b = sites
    return ["--producer-s2cs", a.address, "--consumer-s2cs", b.address, "--ca", str(a.ca), "--ca", str(b.ca)]


@contextlib.contextmanager
def service(name: bytes):
    """A service that greets each client with its name, then echoes."""

    class Answer(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.sendall(name)
            with contextlib.suppress(ConnectionError):
                while data := self.request.recv(65536):
                    self.request.sendall(data)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def converse(listener: str, name: bytes) -> bytes:
    """Return what comes back through `listener` after the service's name."""
    host, port = listener.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection, connection.makefile("rwb") as stream:
        assert stream.read(len(name)) == name
        stream.write(b"a frame\n")
        stream.flush()
        return stream.readline()


def listeners_of(line: str) -> list[str]:
    return ast.literal_eval(line.removeprefix("Listeners: "))


def test_connect_carries_and_leaves_nothing(sites, logged_in):
    with service(b"lab") as target, running(["connect", *logged_in, "--target", target, "--num-conn", "2"]) as process:
        uid = process.stdout.readline().split()[1]
        listeners = listeners_of(process.stdout.readline())
        assert len(listeners) == 2
        assert [converse(listener, b"lab") for listener in listeners] == [b"a frame\n"] * 2
        assert [site.sessions() for site in sites] == [[uid], [uid]]
        process.terminate()
        _, errors = process.communicate(timeout=10)
    assert process.returncode == 0
    assert "warning" not in errors
    assert [site.sessions() for site in sites] == [[], []]
    assert all(complaint.endswith("Connection refused") for complaint in probe(listeners))


def test_lease_ends_what_a_killed_client_held(sites, logged_in):
    with service(b"lab") as target, running(["connect", *logged_in, "--target", target]) as process:
        process.stdout.readline()
        assert all(site.sessions() for site in sites)
        time.sleep(2.5)  # longer than the lease: it is renewed
        assert all(site.sessions() for site in sites)
        process.kill()
        deadline = time.monotonic() + 15
        while any(site.sessions() for site in sites):
            assert time.monotonic() < deadline
            time.sleep(0.1)


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
