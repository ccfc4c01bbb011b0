"""What docs/algorithms.md teaches: the examples in a real run, edited while the scan streams in."""

import hashlib
import shutil
from pathlib import Path

import h5py
import pytest

from aps_mini_apps.daq.phantom import PhantomSource
from aps_mini_apps.quality.measures import compare
from tests.integration.conftest import Program, Start

EXAMPLES = Path(__file__).parents[2] / "examples"
SCAN = {"columns": 64, "rows": 2, "projections": 150}
AXIS = {"center": PhantomSource(**SCAN).center}
OPTIONS = [f"--{name}={value}" for name, value in (SCAN | AXIS).items()]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def finish(run: Program, folder: Path) -> tuple[dict, float]:
    """Wait for the end; return the last file's attributes and how well its volume correlates with the phantom."""
    assert run.finish() == 0, run.errors
    with h5py.File(max((folder / "output").glob("[0-9]*-recon.h5"))) as file:
        return dict(file.attrs), compare(file["data"][()], PhantomSource(**SCAN).truth()).pcc


def save(text: str, path: Path) -> None:
    """Put a text in place of the file in one go, as most editors do."""
    aside = path.with_suffix(".new")
    aside.write_text(text)
    aside.replace(path)


def test_a_run_follows_the_edits_of_a_user_s_file(start: Start, tmp_path: Path) -> None:
    mine = tmp_path / "my_recon.py"
    shutil.copy(EXAMPLES / "my_sirt.py", mine)
    run = start("run", *OPTIONS, "--frame-rate", "15", "--algorithm", "my_recon.py")
    assert run.wait_for("algorithm in use")["version"] == digest(EXAMPLES / "my_sirt.py")

    save(mine.read_text().replace("return volume", "return volum"), mine)
    refused = run.wait_for("algorithm refused: the version before goes on")
    assert (refused["level"], refused["version"]) == ("error", digest(mine))
    assert "NameError: name 'volum' is not defined" in refused["exception"]
    assert "my_recon.py" in refused["exception"]
    assert run.wait_for("algorithm in use")["version"] == digest(EXAMPLES / "my_sirt.py")

    for example in ("my_circle.py", "my_median.py"):
        save((EXAMPLES / example).read_text(), mine)
        assert run.wait_for("algorithm in use")["version"] == digest(mine)
    about, correlation = finish(run, tmp_path)
    assert (about["algorithm"], about["algorithm_version"]) == ("my_recon.py", digest(mine))
    assert (about["algorithm_refused"], about["parameter_every"]) == (1, 10)
    assert (about["state"], about["angles_seen"], about["frames_lost"]) == ("complete", 150, 0)
    assert correlation > 0.9


@pytest.mark.parametrize("broken", ["def update(", "import nothing_like_it", "x = 1"])
def test_a_broken_file_ends_the_run_before_the_scan(start: Start, tmp_path: Path, broken: str) -> None:
    (tmp_path / "bad.py").write_text(broken)
    run = start("run", *OPTIONS, "--algorithm", "bad.py")
    assert run.finish() == 2
    assert "algorithm bad.py does not work" in run.events[-1]["event"]
    assert run.events[0]["exception"]
    assert {event["service"] for event in run.events} == {"run"}


def test_algorithm_and_settings_come_from_the_command_line_or_a_file(start: Start, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("sirt:\n  algorithm: ossirt\n  parameters: {subsets: 4, momentum: false}\n")
    given = ("--parameter", "subsets=6", "--parameter", "relaxation=0.9", "--frame-rate", "0")
    run = start("run", *OPTIONS, *given, "--config", "s.yaml")
    about, correlation = finish(run, tmp_path)
    assert (about["algorithm"], about["parameter_subsets"], about["parameter_relaxation"]) == ("ossirt", 6, 0.9)
    assert correlation > 0.9


def test_fbp_of_the_whole_scan(start: Start, tmp_path: Path) -> None:
    whole = ("--window-length", "150", "--window-step", "150", "--frame-rate", "0")
    run = start("run", *OPTIONS, *whole, "--algorithm", "fbp", "--parameter", "filter=hann")
    about, correlation = finish(run, tmp_path)
    assert (about["window"], about["parameter_filter"]) == (0, "hann")
    assert correlation > 0.9
    assert not [event for event in run.events if "half turn" in event["event"]]


def test_fbp_of_less_than_the_half_turn_is_warned_of_in_the_log(start: Start, tmp_path: Path) -> None:
    run = start("run", *OPTIONS, "--frame-rate", "0", "--algorithm", "fbp")
    finish(run, tmp_path)
    (warned,) = [event for event in run.events if "half turn" in event["event"]]
    assert (warned["level"], warned["service"]) == ("warning", "sirt")
    assert "--window-length" in warned["event"]
