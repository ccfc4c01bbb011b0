"""Batches without a network: on both databases, across file systems, and when files are swapped under way."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from delivery.database import open_database
from delivery.files.catalogue import Catalogue
from delivery.files.version import SourceChanged, digest
from delivery.sync.batches import Batches
from delivery.sync.ledger import Ledger, Mirror
from delivery.sync.projects import Projects
from tests.delivery.sync_programs import files, put

LAB, ANNEX = Mirror("lab", "head", "h5"), Mirror("annex", "head", "h5")


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A folder of another file system than `tmp_path`."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def test_each_broker_has_its_own_cursor_and_a_crash_loses_none(tmp_path, database_url):
    sent = put(tmp_path / "head" / "bar", a=b"a", b=b"b")
    projects = Projects(tmp_path, 0)

    def started() -> Batches:
        engine = open_database(database_url)
        engines.append(engine)
        return Batches(projects, Ledger(engine), Catalogue(engine), lambda _project: {"lab", "annex"})

    engines = []
    batches = started()
    offers = [batches.offer(mirror).batch for mirror in (LAB, ANNEX)]
    assert [[version.path for version in batch.versions] for batch in offers] == [["a.h5", "b.h5"]] * 2
    for mirror, batch in zip((LAB, ANNEX), offers, strict=True):
        again = started()
        assert again.offer(mirror).batch == batch
        assert files(tmp_path / "head" / "bar") == sent
        again.acknowledge(mirror, batch.id, {version.path: version.blake3 for version in batch.versions})
        assert again.offer(mirror) is None
    assert files(tmp_path / "head" / "archive") == sent
    put(tmp_path / "head" / "bar", a=b"a")  # brought back, to be sent again
    assert [version.path for version in started().offer(LAB).batch.versions] == ["a.h5"]
    for engine in engines:
        engine.dispose()


def test_what_a_crash_left_in_place_is_archived_later(tmp_path, database_url):
    sent = put(tmp_path / "head" / "bar", a=b"a")
    engine = open_database(database_url)
    ledger = Ledger(engine)
    batches = Batches(Projects(tmp_path, 0), ledger, Catalogue(engine), lambda _project: {"lab"})
    ledger.acknowledge(batches.offer(LAB).batch)  # on record, and then killed
    Batches(Projects(tmp_path, 0), ledger, Catalogue(engine), lambda _project: {"lab"}).tidy("head")
    assert files(tmp_path / "head") == {"archive/a.h5": sent["a.h5"]}
    assert ledger.had("head") == {}
    engine.dispose()


def test_an_archive_on_another_file_system_gets_whole_copies(tmp_path, elsewhere):
    sent = put(elsewhere / "deep", a=os.urandom(100_000))
    projects = Projects(tmp_path, 0, {"live": elsewhere})
    root = projects.root("live")
    with root.open("deep/a.h5") as descriptor:
        version = digest(descriptor, "deep/a.h5")
    place = projects.archive("live", root, version)
    assert place.read_bytes() == sent["a.h5"]
    assert place.stat().st_mtime_ns == version.mtime_ns
    assert files(elsewhere) == {}
    assert projects.names() == ["live"]


def test_a_file_that_was_replaced_is_not_archived(tmp_path):
    put(tmp_path / "head" / "bar", a=b"a")
    projects = Projects(tmp_path, 0)
    root = projects.root("head")
    with root.open("a.h5") as descriptor:
        version = digest(descriptor, "a.h5")
    new = put(tmp_path / "head" / "bar", a=b"another one")
    with pytest.raises(SourceChanged):
        projects.archive("head", root, version)
    assert files(tmp_path / "head" / "bar") == new
