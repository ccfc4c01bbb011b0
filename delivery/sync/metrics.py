"""What /metrics tells of mirrors.

Batches and files that wait are looked up when somebody asks: they are right after a restart, and grow while a broker
does not come. Bytes sent and the last contact are of this run.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from delivery.sync.ledger import Ledger, Mirror
from delivery.sync.projects import Projects, UnknownProject
from delivery.web.ranges import Content

_STATES = {False: "offered", True: "acknowledged"}


class Meter:
    """Counts what brokers ask for and get."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = Mirror._fields
        self._sent = Counter("delivery_sync_sent_bytes", "Bytes of zips sent, cut ones too.", labels, registry=registry)
        self._contact = Gauge(
            "delivery_sync_last_contact_timestamp_seconds",
            "When a broker last asked for something or acknowledged it, in seconds since 1970.",
            labels,
            registry=registry,
        )

    def heard(self, mirror: Mirror) -> None:
        """Note that a broker is there."""
        self._contact.labels(*mirror).set_to_current_time()

    def metered(self, content: Content, mirror: Mirror) -> Content:
        """Return `content`, whose bytes are counted when they are read to be sent."""
        return _Metered(content, self._sent.labels(*mirror))


class _Metered:
    def __init__(self, content: Content, sent: Counter) -> None:
        self.length, self.etag = content.length, content.etag
        self._content, self._sent = content, sent

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        for block in self._content.read(start, stop):
            self._sent.inc(len(block))
            yield block


class Mirrors(Collector):
    """Tells of each mirror that was ever offered a batch how many there are, and what its broker has not got."""

    def __init__(self, ledger: Ledger, projects: Projects) -> None:
        self._ledger, self._projects = ledger, projects

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Return the metrics, without values."""
        return _batches(), _waiting()

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Return the metrics as they are now."""
        batches, waiting = self.describe()
        tally = self._ledger.tally()
        for mirror, acknowledged, count in tally:
            batches.add_metric([*mirror, _STATES[acknowledged]], count)
        mirrors = {mirror for mirror, _, _ in tally}
        for project in {mirror.project for mirror in mirrors}:
            with suppress(UnknownProject):  # its folder is gone: nothing waits there
                self._count(project, [mirror for mirror in mirrors if mirror.project == project], waiting)
        return batches, waiting

    def _count(self, project: str, mirrors: list[Mirror], waiting: GaugeMetricFamily) -> None:
        files, had = self._projects.root(project).scan().files, self._ledger.had(project)
        for mirror in mirrors:
            asked = [file.path for file in files if file.path.lower().endswith(f".{mirror.ext}")]
            waiting.add_metric(mirror, sum(mirror.broker not in had.get(path, ()) for path in asked))


def _batches() -> GaugeMetricFamily:
    text = "Batches: offered and not acknowledged yet, or acknowledged."
    return GaugeMetricFamily("delivery_sync_batches", text, labels=[*Mirror._fields, "state"])


def _waiting() -> GaugeMetricFamily:
    text = "Files that a broker has not got; a file that changed since it got it is not among them."
    return GaugeMetricFamily("delivery_sync_waiting_files", text, labels=Mirror._fields)
