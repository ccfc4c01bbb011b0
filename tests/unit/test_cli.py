"""The command line made from a settings model."""

import json

import pytest
from typer.testing import CliRunner

from ministream.base import log
from ministream.base.cli import add_program, new_app
from ministream.base.errors import UserError
from ministream.base.lifecycle import Stopped
from ministream.base.settings import Settings, option

runner = CliRunner()
seen: list["Example"] = []


class Example(Settings):
    """Do an example."""

    file: str = option("", help="A file.")
    window_length: int = option(32, names="--wlen", ge=1, help="Length.", group="Window")
    center: float = option(0.0, names="-c", help="Axis.", group="Geometry")
    minus_log: bool = option(True, names="--mlog", help="-log.")


def example(settings: Example) -> int:
    seen.append(settings)
    if settings.file == "bad":
        raise UserError("the file is bad: give a good one")
    if settings.file == "stop":
        raise Stopped("SIGINT")
    if settings.file == "fault":
        raise KeyError("oops")
    return 0


app = new_app("Examples.")
add_program(app, "daq", Example, example, arguments={"file": "The file."})
add_program(app, "dist", Example, example)


def invoke(*arguments: str) -> tuple[int, str]:
    result = runner.invoke(app, ["daq", *arguments])
    return result.exit_code, result.output


@pytest.mark.parametrize("name", ["--window-length", "--window_length", "--wlen"])
def test_every_name_works_with_hyphens_and_underscores(name: str) -> None:
    assert invoke("scan.h5", name, "8", "-c", "1.5", "--no-mlog")[0] == 0
    assert (seen[-1].file, seen[-1].window_length, seen[-1].center) == ("scan.h5", 8, 1.5)
    assert seen[-1].minus_log is False


def test_an_option_that_is_not_given_keeps_its_default() -> None:
    assert invoke()[0] == 0
    assert seen[-1] == Example()


def test_what_the_user_can_mend_is_one_line_and_exit_code_2() -> None:
    code, output = invoke("bad")
    assert code == 2
    assert output.count("\n") == 1
    assert "error   daq" in output
    assert "the file is bad: give a good one" in output


def test_a_value_out_of_range_names_its_option() -> None:
    code, output = invoke("--window-length", "0")
    assert code == 2
    assert "command line: window_length: Input should be greater than or equal to 1 (given: '0')" in output


def test_an_unknown_option_is_refused_with_the_nearest_one() -> None:
    code, output = invoke("--window-lenght", "3")
    assert code == 2
    assert "--window-length" in output


def test_a_stop_and_a_fault_have_their_own_exit_codes() -> None:
    assert invoke("stop")[0] == 130
    code, output = invoke("fault")
    assert code == 1
    assert "Traceback" in output
    assert "oops" in output


def test_json_logs_are_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("sirt", style="json")
    log.get_logger().info("scan ended", received=180, misfit=0.25)
    event = json.loads(capsys.readouterr().out)
    assert {event[k] for k in ("service", "level", "event")} == {"sirt", "info", "scan ended"}
    assert (event["received"], event["misfit"]) == (180, 0.25)


def test_text_logs_show_time_level_service_event_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("dist", level="warning")
    log.get_logger().info("not shown")
    log.get_logger().warning("frames lost", count=2, path="/a b")
    line = capsys.readouterr().out
    assert "not shown" not in line
    assert line.split(" ", 1)[1].rstrip() == 'warning dist    frames lost  count=2  path="/a b"'


def test_help_shows_groups_and_defaults() -> None:
    code, output = invoke("--help")
    assert code == 0
    assert "Window" in output
    assert "--window-length" in output
    assert "[default: (32)]" in output
