"""What a service answers to those that watch it."""

import http.client
import json
import socket

import pytest
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from ministream.base.errors import UserError
from ministream.base.health import Health, serve_health

FREE = "127.0.0.1:0"


def ask(address: str, path: str, method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection(address, timeout=10)
    connection.request(method, path)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, body


class OneFigure(Collector):
    def collect(self):
        yield GaugeMetricFamily("ministream_up", "Whether it runs", value=1)


def test_health_is_asked_for_anew_each_time() -> None:
    states = [Health(ready=False, reason="starting"), Health(ready=True, reason="scanning")]
    with serve_health(FREE, lambda: states[0]) as address:
        assert ask(address, "/healthz") == (503, '{"reason": "starting"}\n')
        states.pop(0)
        status, body = ask(address, "/healthz")
        assert (status, json.loads(body)) == (200, {"reason": "scanning"})


def test_figures_and_nothing_else_are_served() -> None:
    with serve_health(FREE, lambda: Health(ready=True, reason=""), OneFigure()) as address:
        status, body = ask(address, "/metrics")
        assert status == 200
        assert "ministream_up 1.0" in body.splitlines()
        for method, path in [("GET", "/"), ("POST", "/healthz"), ("PUT", "/metrics"), ("GET", "/metrics/../etc")]:
            assert ask(address, path, method)[0] == 404


def test_who_is_connected_and_silent_hinders_neither_others_nor_the_end() -> None:
    with serve_health(FREE, lambda: Health(ready=True, reason="")) as address:
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port)), 10):
            assert ask(address, "/healthz")[0] == 200
    with pytest.raises(ConnectionError):
        ask(address, "/healthz")


@pytest.mark.parametrize("address", ["8089", "here", "127.0.0.1:x", "127.0.0.1:99999", "203.0.113.1:0"])
def test_an_address_that_cannot_be_had_is_named(address: str) -> None:
    with (
        pytest.raises(UserError, match=f"{address}.*(HOST:PORT|another)"),
        serve_health(address, lambda: Health(ready=True, reason="")),
    ):
        pass
