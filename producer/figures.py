"""The figures of a scan for Prometheus, read from what acquisition and distributor have logged last."""

from collections.abc import Iterable

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ministream.base.children import Child, Children

_COUNTERS = (
    ("frames_read", "Frames that the acquisition has sent", "daq", "sent"),
    ("projections_distributed", "Projections that have left for the workers", "dist", "sent"),
    ("frames_lost", "Frames that were sent and never came to the distributor", "dist", "lost"),
    ("frames_refused", "Messages that the distributor refused", "dist", "refused"),
)
_RATES = (
    ("read_rate", "Frames per second that the acquisition sends", "daq"),
    ("distribution_rate", "Projections per second that leave for the workers", "dist"),
)


class Figures(Collector):
    """What is told of the programs `children`."""

    def __init__(self, children: Children) -> None:
        self._children = children

    def collect(self) -> Iterable[Metric]:
        """Yield the figures as they are now."""
        programs = {child.name: child for child in self._children.all}
        up = GaugeMetricFamily("ministream_up", "Whether the program runs", labels=["program"])
        for name in ("daq", "dist"):
            child = programs.get(name)
            up.add_metric([name], float(child is not None and child.process.poll() is None))
        yield up
        for metric, text, program, field in _COUNTERS:
            yield CounterMetricFamily(f"ministream_{metric}", text, value=_latest(programs.get(program), field))
        for metric, text, program in _RATES:
            yield GaugeMetricFamily(f"ministream_{metric}", text, value=_latest(programs.get(program), "rate"))


def _latest(child: Child | None, field: str) -> float:
    if child is None:
        return 0.0
    event = child.events.get("scan ended") or child.events.get("progress") or {}
    return float(event.get(field, 0))
