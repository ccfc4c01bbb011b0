"""Settings: where values come from, and what is refused, in which words."""

from pathlib import Path

import pytest

from ministream.base.errors import UserError
from ministream.base.settings import Settings, option
from ministream.base.units import Size


class Example(Settings):
    """An example."""

    window_length: int = option(32, ge=1, help="Length.")
    repeats: int = option(1, names="--d_iteration", ge=1, help="Repeats.")
    center: float = option(0.0, names="-c", help="Axis.")
    minus_log: bool = option(True, help="-log.")
    memory: Size = option("1GB", help="Memory.")


def config(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    return path


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    path = config(tmp_path, "daq:\n  window-length: 1\n  repeats: 2\n  center: 3\n")
    environment = {"MINISTREAM_DAQ_REPEATS": "20", "MINISTREAM_DAQ_CENTER": "30", "HOME": "/"}
    settings = Example.load("daq", config=path, environment=environment, overrides={"center": "300"})
    assert (settings.window_length, settings.repeats, settings.center) == (1, 20, 300.0)
    assert settings.config_file == path


@pytest.mark.parametrize("key", ["d_iteration", "d-iteration", "repeats", "D_ITERATION"])
def test_an_option_has_all_its_names_in_every_place(tmp_path: Path, key: str) -> None:
    assert Example.load("daq", environment={f"MINISTREAM_DAQ_{key}": "5"}).repeats == 5
    if key.islower():
        assert Example.load("daq", config=config(tmp_path, f"daq: {{{key}: 6}}")).repeats == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("daq:\n  windw_length: 3\n", r"\[daq\]: no option is called 'windw_length'; did you mean window_length\?"),
        ("dak:\n  center: 3\n", "no option is called 'dak'; did you mean daq"),
        ("daq: 7\n", "section daq must hold"),
        ("- 1\n", "expected sections"),
        ("daq: [unclosed\n", "is not YAML"),
        ("daq:\n  window_length: 0\n", r"window_length: Input should be greater than or equal to 1 \(given: 0\)"),
        ("daq:\n  minus_log: perhaps\n", "minus_log: .*bool"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Example.load("daq", config=config(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.yaml: No such file"):
        Example.load("daq", config=tmp_path / "nowhere.yaml")


def test_an_unknown_variable_is_refused_and_that_of_another_program_is_not() -> None:
    assert Example.load("daq", environment={"MINISTREAM_DIST_ANYTHING": "1"}).repeats == 1
    with pytest.raises(UserError, match=r"environment MINISTREAM_DAQ_CENTRE: .* did you mean center"):
        Example.load("daq", environment={"MINISTREAM_DAQ_CENTRE": "1"})


@pytest.mark.parametrize(("text", "size"), [("64MB", 64_000_000), ("1 KiB", 1024), ("7", 7), (7, 7)])
def test_sizes_are_given_in_words(text: str | int, size: int) -> None:
    assert Example.load("daq", overrides={"memory": text}).memory == size


def test_a_wrong_size_is_refused() -> None:
    with pytest.raises(UserError, match="command line: memory"):
        Example.load("daq", overrides={"memory": "much"})
