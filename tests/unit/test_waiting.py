"""How long a link waits, and that nothing which has come is overlooked."""

import time

import pytest

from aps_mini_apps.links import LinkTimeoutError
from aps_mini_apps.links._waiting import Patience
from ministream.base.lifecycle import SLICE


def after(looks: int, pause: float = SLICE):
    """Return a condition that is false for so many looks, each of which waits."""
    left = [looks]

    def ready() -> bool:
        left[0] -= 1
        time.sleep(pause)
        return left[0] < 0

    return ready


def test_silence_ends_a_wait_when_its_time_is_over() -> None:
    began = time.monotonic()
    with pytest.raises(LinkTimeoutError, match="nothing came"):
        Patience(timeout=3 * SLICE).wait(after(1000), "nothing came")
    assert time.monotonic() - began > 2.5 * SLICE


def test_what_came_while_the_process_was_stopped_is_seen() -> None:
    Patience(timeout=0.1).wait(after(1, pause=0.5), "nothing came")


def test_a_peer_that_is_there_has_all_the_time_it_needs() -> None:
    Patience(timeout=SLICE).wait(after(8), "nothing came", alive=lambda: True)
    with pytest.raises(LinkTimeoutError):
        Patience(timeout=SLICE).wait(after(8), "nothing came", alive=lambda: False)
