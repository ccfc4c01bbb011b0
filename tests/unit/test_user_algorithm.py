"""A user's file, edited between windows: the newest version that works is used, and no window is lost to a bad one."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from aps_mini_apps.sirt import user_algorithm
from aps_mini_apps.sirt.projectors import make_projector
from aps_mini_apps.sirt.user_algorithm import UserAlgorithm, choose_algorithm
from ministream.base.errors import UserError
from tests.folding import make_window

ADD = (
    "def update(window, volume, projector, parameters):\n    volume += projector.import_volume({})\n    return volume\n"
)
ONES = "__import__('numpy').full((projector.slices, projector.columns, projector.columns), {}, 'float32')"


def adding(number: float) -> str:
    """Return the text of an algorithm that adds `number` to every pixel."""
    return ADD.format(ONES.format(number))


class Bench:
    """A user's file and a volume into which windows are folded."""

    def __init__(self, path: Path, backend: str = "numba") -> None:
        self.path = path
        self.projector = make_projector(backend, 3, 8)
        self.volume = self.projector.new_volume()
        self.windows = 0

    def load(self, text: str, **given: object) -> "Bench":
        self.save(text)
        self.algorithm = UserAlgorithm(self.path, given)
        return self

    def fold(self) -> np.ndarray:
        """Fold one window in; return the volume."""
        angles = np.linspace(0.0, 3.0, 5)
        window = make_window(self.projector, np.ones((5, 3, 8)), angles, 4.0, number=self.windows)
        self.volume, progress = self.algorithm.fold(window, self.volume, self.projector)
        assert np.isfinite([progress.change, progress.misfit]).all()
        self.windows += 1
        return self.projector.export_volume(self.volume)

    def save(self, text: str, seconds_ago: float = 1.0) -> None:
        """Write the file over."""
        self.path.write_text(text)
        when = time.time() - seconds_ago
        os.utime(self.path, (when, when))

    def replace(self, text: str) -> None:
        """Put another text in place of the file, as most editors do."""
        whole, self.path = self.path, self.path.with_suffix(".new")
        self.save(text)
        self.path = self.path.replace(whole)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "mine.py")


def test_a_saved_edit_is_taken_at_the_next_window_and_the_volume_is_kept(bench: Bench) -> None:
    bench.load(adding(1))
    with capture_logs() as log:
        assert np.all(bench.fold() == 1)
        first = bench.algorithm.about()["algorithm_version"]
        bench.save(adding(5))
        assert np.all(bench.fold() == 6)
        bench.replace(adding(7))
        assert np.all(bench.fold() == 13)
    said = [(event["event"], event["window"]) for event in log]
    assert said == [("algorithm in use", window) for window in range(3)]
    assert log[0]["version"] == first != bench.algorithm.about()["algorithm_version"] == log[2]["version"]


def test_an_edit_of_the_same_length_within_one_tick_of_the_clock_is_seen(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_algorithm, "CLOCK_TICK", 60.0)
    bench.load(adding(1))
    times = bench.path.stat()
    bench.save(adding(2))
    os.utime(bench.path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert np.all(bench.fold() == 2)


def test_a_file_that_is_being_written_waits_for_the_next_window(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_algorithm, "SETTLED", 30.0)
    monkeypatch.setattr(user_algorithm, "EMPTIED", 120.0)
    bench.load(adding(1)).fold()
    whole = adding(2)
    with capture_logs() as log:
        bench.save("", seconds_ago=60.0)
        assert np.all(bench.fold() == 2)
        bench.save(whole[: len(whole) // 2], seconds_ago=0.0)
        assert np.all(bench.fold() == 3)
        bench.save(whole, seconds_ago=60.0)
        assert np.all(bench.fold() == 5)
    assert [event["log_level"] for event in log] == ["info"]


def test_a_write_that_begins_while_the_file_is_read_waits_for_the_next_window(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.load(adding(1)).fold()
    bench.save(adding(2))

    def read_too_late(path: Path) -> bytes:
        path.write_bytes(b"")  # an editor that writes in place has emptied it between the look and the read
        return b""

    with capture_logs() as log:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_bytes", read_too_late)
            assert np.all(bench.fold() == 2)
        bench.save(adding(3))
        assert np.all(bench.fold() == 5)
    assert [event["log_level"] for event in log] == ["info"]


BROKEN = {
    "syntax": "def update(:\n",
    "import": "import no_such_module\n",
    "exit": "raise SystemExit\n",
    "nothing": "",
    "wrong name": "def improve(window, volume, projector, parameters):\n    return volume\n",
    "no dataclass": "class Parameters:\n    pass\n" + adding(1),
    "mid-update": adding(3).replace("    return volume", "    1 / 0"),
    "exits": adding(3).replace("    return volume", "    raise SystemExit(3)"),
    "returns nothing": adding(3).replace("    return volume", "    return"),
    "returns a number": adding(3).replace("    return volume", "    return 3.0"),
    "wrong shape": adding(3).replace("    return volume", "    return volume[:, 1:]"),
    "wrong type": adding(3).replace("    return volume", "    return volume.astype(float)"),
    "not a number": adding(3).replace("    return volume", "    return volume * float('nan')"),
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_a_bad_edit_is_reported_and_the_version_before_goes_on(bench: Bench, text: str) -> None:
    bench.load(adding(1)).fold()
    bench.save(text, seconds_ago=3.0)
    with capture_logs() as log:
        assert np.all(bench.fold() == 2)  # the window that met it is not lost, nor folded in twice
        assert np.all(bench.fold() == 3)
    (refused,) = [event for event in log if event["log_level"] == "error"]
    assert refused["event"] == "algorithm refused: the version before goes on"
    assert refused["exc_info"]
    assert (refused["window"], bench.algorithm.about()["algorithm_refused"]) == (1, 1)
    bench.save(adding(10))
    assert np.all(bench.fold() == 13)


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_a_bad_first_version_ends_the_program_before_the_scan(bench: Bench, text: str) -> None:
    with capture_logs() as log, pytest.raises(UserError, match=r"mine.py does not work"):
        bench.load(text)
    assert log[0]["exc_info"]


def test_what_a_file_says_that_it_holds_is_checked_and_added_to_what_is_kept_here(bench: Bench) -> None:
    say = adding(1) + "def held(parameters, projections):\n    return {}\n"
    with capture_logs(), pytest.raises(UserError, match=r"held returned int, not algorithms.Held"):
        bench.load(say.format(3))
    more = "__import__('aps_mini_apps.sirt.algorithms', fromlist=['x']).Held(volumes=projections)"
    assert bench.load(say.format(more)).algorithm.held(5).volumes == 5 + 2


def test_a_version_that_works_until_it_does_not_hands_over_when_it_is_mended(bench: Bench) -> None:
    bench.load(adding(1).replace("    volume +=", "    assert window.number != 1, 'not today'\n    volume +=", 1))
    assert np.all(bench.fold() == 1)
    with capture_logs() as log:
        assert np.all(bench.fold() == 1)  # nothing works: the window leaves the volume as it is
        assert np.all(bench.fold() == 1)
    assert [event["event"] for event in log if event["log_level"] == "error"] == [log[0]["event"]]
    assert bench.algorithm.about()["algorithm_version"] == "none works"
    bench.save(adding(2))
    assert np.all(bench.fold() == 3)


def test_a_file_that_is_gone_for_a_while_changes_nothing(bench: Bench) -> None:
    bench.load(adding(1)).fold()
    bench.path.unlink()
    assert np.all(bench.fold() == 2)
    bench.save(adding(4))
    assert np.all(bench.fold() == 6)


def test_memory_starts_empty_with_each_version(bench: Bench) -> None:
    count = "def update(window, volume, projector, parameters):\n"
    count += "    window.memory['n'] = window.memory.get('n', 0) + 1\n"
    count += f"    return volume * 0 + projector.import_volume({ONES.format(1)}) * window.memory['n']\n"
    bench.load(count)
    assert [bench.fold().max() for _ in range(3)] == [1, 2, 3]
    bench.save(f"# edited\n{count}")
    assert bench.fold().max() == 1
    bench.algorithm.restart()
    assert bench.fold().max() == 1


def test_what_whole_array_operators_write_around_the_pixels_is_wiped(bench: Bench) -> None:
    bench.load("def update(window, volume, projector, parameters):\n    volume += 1.0\n    return volume\n")
    bench.fold()
    clean = bench.projector.import_volume(np.ones((3, 8, 8), np.float32))
    np.testing.assert_array_equal(bench.volume, clean)


PARAMETERS = """
from __future__ import annotations
from dataclasses import dataclass
@dataclass
class Parameters:
    amount: float = 1.0
"""


def test_settings_are_those_of_the_file(bench: Bench) -> None:
    text = PARAMETERS + adding(1).replace("1,", "parameters.amount,", 1)
    bench.load(text, amount="2.5")
    assert np.all(bench.fold() == 2.5)
    assert bench.algorithm.about()["parameter_amount"] == 2.5
    with pytest.raises(UserError, match="has no parameter 'amuont'; did you mean amount"):
        bench.load(text, amuont="2")


def test_a_file_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.py cannot be read: No such file"):
        choose_algorithm(str(tmp_path / "none.py"))
    with pytest.raises(UserError, match="did you mean sirt"):
        choose_algorithm("srit")
