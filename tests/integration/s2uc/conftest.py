"""Fixtures of the user client's tests."""

import signal
from concurrent import futures
from pathlib import Path

import grpc
import pytest

from s2cs.proto import scistream_pb2_grpc as rpc
from tests.integration.s2uc.servers import OurServer, make_certificate
from tests.sites import log_in, two_sites


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


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    """The producer's site and the consumer's."""
    with two_sites(tmp_path_factory.mktemp("sites")) as both:
        yield both


@pytest.fixture
def logged_in(sites):
    """What `connect` needs to be given after a login at both sites."""
    return log_in(sites)
