"""`/metrics` for Prometheus: what the receiver does, and how far its scan is, read off the desk when it is asked."""

import math
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from receiver.desk import Desk, State

_PREFIX = "ministream_receiver_"

_GAUGES = {
    "received": ("projections_received", "Projections of the scan that have come"),
    "reconstructed": ("projections_reconstructed", "Projections that every worker has reconstructed"),
    "total": ("projections_expected", "Projections that the acquisition has announced; 0: not known"),
    "windows": ("windows", "Windows that every worker has reconstructed"),
    "rate": ("projections_per_second", "Speed of the slowest worker"),
    "lag": ("lag_projections", "Projections sent by the acquisition and not yet reconstructed"),
    "lost": ("frames_lost", "Frames of the scan that never came"),
    "residual": ("misfit", "Relative residual of the last window"),
}


class Metrics(Collector):
    """The figures of a receiver; those of a scan start anew with each run."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def render(self) -> bytes:
        """Return the figures in Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """Return the figures of this moment."""
        status = self._desk.status()
        state = GaugeMetricFamily(f"{_PREFIX}state", "1 for the state that the receiver is in", labels=["state"])
        for name in State:
            state.add_metric([name.value], float(status["state"] == name))
        yield state
        runs = CounterMetricFamily(f"{_PREFIX}runs", "Runs that have ended", labels=["state"])
        for name, count in self._desk.ended.items():
            runs.add_metric([name.value], count)
        yield runs
        for key, (metric, text) in _GAUGES.items():
            value = status.get(key, 0)
            yield GaugeMetricFamily(_PREFIX + metric, text, value=math.nan if value is None else float(value))
        yield GaugeMetricFamily(f"{_PREFIX}files_written", "Files of the scan", value=len(status["files"]))
