"""`ministream sirt`: what is made ready before the first projection comes."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from aps_mini_apps.frames import Frame, FrameKind, RowRange
from aps_mini_apps.links.push import PushSender
from aps_mini_apps.links.tmq import TmqDistributor
from aps_mini_apps.sirt import program
from aps_mini_apps.sirt.algorithms import load_algorithm
from aps_mini_apps.sirt.settings import SirtSettings
from ministream.base.lifecycle import StopFlag

FREE, PATIENCE = "tcp://127.0.0.1:*", 20.0
ROWS, COLUMNS = 5, 16
STARTED = {"time": "2026-01-01T12:00:00Z", "level": "info", "service": "daq", "event": "scan started"}
PROJECTION = Frame(kind=FrameKind.PROJECTION, pixels=np.ones((ROWS, COLUMNS), np.float32))


class Compiled:
    """Stands in for the compiler: tells for which slices and columns it was begun."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = threading.Event()
        monkeypatch.setattr(program._Listener, "_compile", self._begin)

    def _begin(self, slices: int, columns: int) -> None:
        self.slab = slices, columns
        self.begun.set()


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Compiled:
    return Compiled(monkeypatch)


def receive(**settings: Any) -> Frame | None:
    """Return the first frame that the program receives."""
    given = SirtSettings(timeout=PATIENCE, **settings)
    with program._open_receiver(given, StopFlag(), program._Listener(given, load_algorithm())) as receiver:
        return receiver.receive()


def test_compiling_begins_before_the_first_projection_on_the_push_link(compiled: Compiled) -> None:
    with PushSender(FREE, timeout=PATIENCE) as sender, ThreadPoolExecutor(1) as pool:
        received = pool.submit(receive, source=sender.endpoint, rank=1, workers=2)
        sender.tell(STARTED | {"rows": ROWS, "columns": COLUMNS})
        sender._prepare()
        assert compiled.begun.wait(PATIENCE)
        sender.send(PROJECTION)
        assert received.result() is not None
    assert compiled.slab == (ROWS // 2, COLUMNS)


def test_compiling_begins_before_the_first_projection_on_the_old_link(compiled: Compiled) -> None:
    with TmqDistributor(FREE, timeout=PATIENCE) as distributor, ThreadPoolExecutor(1) as pool:
        port = int(distributor.endpoint.rpartition(":")[2])
        received = pool.submit(receive, dest_host="127.0.0.1", dest_port=port)
        assert distributor.workers() == 1
        distributor.start(ROWS, COLUMNS)
        assert compiled.begun.wait(PATIENCE)
        distributor.senders[0].send(PROJECTION)
        assert received.result() is not None
    assert compiled.slab == (ROWS, COLUMNS)


def test_a_scan_that_does_not_fit_allocates_nothing_while_its_flats_arrive() -> None:
    """A mask of its pixels alone would take terabytes: what is raised in the compiler's thread fails this test."""
    listener = program._Listener(SirtSettings(), load_algorithm())
    listener.take_rows(RowRange(start=0, stop=2, total=2), 2_000_000)
    listener.compiler.wait(lambda: None)
