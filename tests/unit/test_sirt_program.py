"""`ministream sirt`: what is made ready before the first projection comes."""

from aps_mini_apps.sirt import program
from aps_mini_apps.sirt.algorithms import load_algorithm
from aps_mini_apps.sirt.settings import SirtSettings
from aps_mini_apps.wire.note import Note


def test_a_scan_that_does_not_fit_allocates_nothing_while_its_flats_arrive() -> None:
    """A mask of its pixels alone would take terabytes: what is raised in the compiler's thread fails this test."""
    listener = program._Listener(SirtSettings(), load_algorithm())
    fields = {"rows": 2, "columns": 2_000_000}
    listener.hear(Note(time="2026-01-01T12:00:00Z", level="info", service="daq", event="scan started", fields=fields))
    listener.compiler.wait(lambda: None)
