"""The monitoring's files are right."""

import json
import re

import pytest

from tests.conftest import ROOT
from tests.docker.conftest import command

FOLDER = ROOT / "configs" / "prometheus"


@pytest.mark.needs("promtool")
def test_prometheus_accepts_its_files() -> None:
    command("promtool", "check", "config", "--syntax-only", FOLDER / "prometheus.yml")
    command("promtool", "check", "rules", FOLDER / "alerts.yml")


def test_what_is_asked_for_exists() -> None:
    """Every metric of ours that rules and dashboard name is one that a service tells."""
    told = "".join(path.read_text() for name in ("s2cs", "receiver") for path in [ROOT / name / "metrics.py"])
    dashboard = (FOLDER / "dashboard.json").read_text()
    assert json.loads(dashboard)["panels"]
    asked = re.findall(r"\b(?:s2cs|ministream_receiver)_\w+", (FOLDER / "alerts.yml").read_text() + dashboard)
    assert asked
    for name in asked:
        assert name.removeprefix("ministream_receiver_").removesuffix("_total") in told, name
