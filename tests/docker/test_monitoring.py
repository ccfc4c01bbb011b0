"""The monitoring's files are right."""

import json
import re

import pytest
import yaml

from tests.conftest import ROOT
from tests.docker.conftest import command

FOLDER = ROOT / "configs" / "prometheus"


@pytest.mark.needs("promtool")
def test_prometheus_accepts_its_files() -> None:
    command("promtool", "check", "config", "--syntax-only", FOLDER / "prometheus.yml")
    command("promtool", "check", "rules", FOLDER / "alerts.yml")


def test_all_ways_out_are_watched() -> None:
    """Every service of delivery that tells its health, at the port at which it does."""
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    found = [job["dns_sd_configs"][0] for job in config["scrape_configs"] if "dns_sd_configs" in job]
    services = yaml.safe_load((ROOT / "docker-compose-delivery.yaml").read_text())["services"]
    tests = {name: str(service.get("healthcheck", {}).get("test")) for name, service in services.items()}
    told = {name: re.findall(r":(\d+)/healthz", test) for name, test in tests.items() if "/healthz" in test}
    assert {name: [str(place["port"])] for place in found for name in place["names"]} == told


def test_what_is_asked_for_exists() -> None:
    """Every metric of ours that rules and dashboard name is one that a service tells."""
    told = "".join(path.read_text() for name in ("s2cs", "receiver") for path in [ROOT / name / "metrics.py"])
    dashboard = (FOLDER / "dashboard.json").read_text()
    assert json.loads(dashboard)["panels"]
    asked = re.findall(r"\b(?:s2cs|ministream_receiver)_\w+", (FOLDER / "alerts.yml").read_text() + dashboard)
    assert asked
    for name in asked:
        assert name.removeprefix("ministream_receiver_").removesuffix("_total") in told, name
