"""`/metrics` for Prometheus: sessions by state, traffic of each that is live, and how long setting one up takes.

Served by the event loop that owns the sessions, when it is asked: no thread, and no figures kept in two places.
"""

import asyncio
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from s2cs.gateway import Gateway
from s2cs.terms import View

BUCKETS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0)
"""Seconds; a session is to be set up in 0.05 on each side."""

MAX_QUESTION, PATIENCE = 8192, 5.0

_LABELS = ("uid", "role")


class Metrics(Collector):
    """The figures of a control server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._setup = Histogram(
            "s2cs_setup_seconds", "Work to set a session up, waiting excluded", buckets=BUCKETS, registry=self._registry
        )
        self.observe_setup = self._setup.observe
        self._found: list[Metric] = []
        self._registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """Return what `render` has just found."""
        return self._found

    async def render(self, gateway: Gateway) -> bytes:
        """Return the figures in Prometheus' text format."""
        views = await gateway.views(None)
        self._found = [*_figures(gateway, views)]
        return generate_latest(self._registry)

    async def serve(self, gateway: Gateway, host: str, port: int) -> asyncio.Server:
        """Answer `GET /metrics` on `host`:`port`."""

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                async with asyncio.timeout(PATIENCE):
                    question = await reader.readuntil(b"\r\n\r\n")
                    writer.write(await self._respond(question, gateway))
                    await writer.drain()
            except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                pass  # who asks like this gets no answer
            finally:
                writer.close()

        return await asyncio.start_server(answer, host, port, limit=MAX_QUESTION)

    async def _respond(self, question: bytes, gateway: Gateway) -> bytes:
        if not question.startswith(b"GET /metrics"):
            return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        body = await self.render(gateway)
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {CONTENT_TYPE_LATEST}\r\nContent-Length: {len(body)}\r\n"
        return f"{head}Connection: close\r\n\r\n".encode() + body


def _figures(gateway: Gateway, views: list[View]) -> Iterator[Metric]:
    states = GaugeMetricFamily("s2cs_sessions", "Sessions; of those that ended, the last hour's", labels=["state"])
    for state, count in gateway.counts().items():
        states.add_metric([state.value], count)
    yield states
    yield GaugeMetricFamily("s2cs_free_ports", "Ports that no session holds", value=gateway.free_ports)
    connections = GaugeMetricFamily("s2cs_session_connections", "Connections that are open", labels=_LABELS)
    received = CounterMetricFamily("s2cs_session_received_bytes", "Bytes from who connects", labels=_LABELS)
    sent = CounterMetricFamily("s2cs_session_sent_bytes", "Bytes to who connects", labels=_LABELS)
    restarts = CounterMetricFamily("s2cs_session_proxy_restarts", "How often the proxy was restarted", labels=_LABELS)
    for view in views:
        labels = [view.session.uid, view.session.role.value]
        connections.add_metric(labels, view.traffic.connections)
        received.add_metric(labels, view.traffic.bytes_in)
        sent.add_metric(labels, view.traffic.bytes_out)
        restarts.add_metric(labels, view.session.restarts)
    yield from (connections, received, sent, restarts)
