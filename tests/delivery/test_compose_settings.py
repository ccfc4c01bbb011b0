"""docker-compose-delivery.yaml, the file of its settings and the Makefile agree, and no port is published twice."""

import re
import subprocess

from tests.conftest import ROOT

COMPOSE = (ROOT / "docker-compose-delivery.yaml").read_text()
SETTINGS = (ROOT / "configs" / "delivery.env").read_text()

VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")
SETTING = re.compile(r"^# ([A-Z0-9_]+)=(.*)$", re.MULTILINE)
PUBLISHED = re.compile(r'ports: \["[^:]+?:?-?[\d.]*\}?:\$\{\w+:-(\d+)\}:\d+"\]')
OF_PRODUCTION = re.compile("DATABASE|TICKETS_STORE|INTAKE_STORE|(ZERO|ONE)_DRIVER|KAFKA_PORT")
"""What stands there as it is with the profiles that bring servers; the file says so."""


def test_every_variable_is_told_with_its_default() -> None:
    used, told = set(VARIABLE.findall(COMPOSE)), set(SETTING.findall(SETTINGS))
    assert {name for name, _ in told} - {"COMPOSE_PROFILES"} == {name for name, _ in used}
    assert {name for name, _ in used - told if not OF_PRODUCTION.fullmatch(name)} == set()


def test_no_port_of_the_host_is_published_twice() -> None:
    ports = [*PUBLISHED.findall(COMPOSE), "9090"]  # the pipeline's monitoring
    assert len(ports) == COMPOSE.count("ports: [") + 1
    assert sorted(set(ports)) == sorted(ports)


def test_make_deliver_starts_every_way_out() -> None:
    command = ["make", "--dry-run", "deliver", "COMPOSE=docker-compose"]
    said = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    of_one_way = set(re.findall(r"profiles: \[(\w+)\]", COMPOSE))
    assert set(re.findall(r"--profile (\w+)", said)) == of_one_way - {"postgres", "s3", "kafka"}
