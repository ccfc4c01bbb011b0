"""Two facilities in containers: images made once, and a fresh stack for each test.

The addresses and container names are the compose file's own, so that one stack runs at a time: the tests are one
group. Their project and their output volume have other names than a user's, whose data they must not touch.
"""

import fcntl
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

MARKS = [pytest.mark.docker, pytest.mark.xdist_group("docker"), pytest.mark.needs("docker", "docker-compose")]
"""Of all tests here."""

PROJECT = "mini-stream-test"
SERVICES = ("producer", "p2cs", "c2cs", "receiver", "ministream")
IMAGES = ("mini-stream/control", "mini-stream/pipeline")
DELIVERY_IMAGE = "mini-stream/delivery"
PATIENCE = 120.0

# the engine may be older than the command, and need not have the builder that both composes would choose
ENVIRONMENT = {"DOCKER_API_VERSION": "1.41", **os.environ, "DOCKER_BUILDKIT": "0", "COMPOSE_DOCKER_CLI_BUILD": "0"}

COMPOSES = {"v1": Path("/usr/bin/docker-compose"), "v2": Path(sys.prefix) / "bin" / "docker-compose"}


def command(*arguments: object, timeout: float = PATIENCE, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command; with `check` fail the test, showing what it said, unless it ends with 0."""
    argv = [str(argument) for argument in arguments]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, cwd=ROOT, env=ENVIRONMENT, check=False)
    if check and done.returncode:
        pytest.fail(f"{' '.join(argv)} ended with {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return done


def docker(*arguments: object, **options: Any) -> str:
    """Run `docker` and return what it says."""
    return command("docker", *arguments, **options).stdout.strip()


@contextmanager
def alone() -> Iterator[None]:
    """Keep other test processes from the engine: addresses and names are fixed, and builds share their layers."""
    with (Path(tempfile.gettempdir()) / "mini-stream-docker-tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def answers() -> None:
    """Skip where no Docker engine answers."""
    if command("docker", "info", check=False).returncode:
        pytest.skip("no Docker engine answers here (bash tests/docker/engine.sh starts one, as root)")


@pytest.fixture(scope="session")
def images(answers: None) -> Sequence[str]:  # noqa: ARG001 - a condition
    """Both images, made from this checkout."""
    with alone():
        command(COMPOSES["v1"], "build", timeout=1500)
    return IMAGES


@pytest.fixture(scope="session")
def delivery_image(answers: None) -> str:  # noqa: ARG001 - a condition
    """The image of delivery's services, made from this checkout."""
    with alone():
        docker("build", "--file", "delivery/Dockerfile", "--tag", DELIVERY_IMAGE, ".", timeout=600)
    return DELIVERY_IMAGE


@dataclass
class Stack:
    """The services of docker-compose-3.yaml, with some settings of a test."""

    compose: Path
    override: Path
    started: float = 0.0

    def argv(self, *arguments: str) -> list[str]:
        files = ("-f", str(ROOT / "docker-compose-3.yaml"), "-f", str(self.override))
        return [str(self.compose), "-p", PROJECT, *files, *arguments]

    def __call__(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return command(*self.argv(*arguments), **options)

    def run(self) -> subprocess.CompletedProcess[str]:
        """`up` until the client has ended; the exit code is the scan's."""
        self.started = time.time()
        return self("up", "--no-build", "--no-color", "--exit-code-from", "ministream", check=False, timeout=180)

    def start(self) -> None:
        """`up` in the background."""
        self.started = time.time()
        self("up", "--no-build", "-d")

    def wait_for(self, service: str, text: str, seconds: float = 60.0) -> str:
        """Follow a service's log up to the first line that holds `text`, and return that."""
        argv = ["timeout", str(seconds), "docker", "logs", "-f", service]
        with subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT
        ) as log:
            assert log.stdout is not None
            try:
                for line in log.stdout:
                    if text in line:
                        return line
            finally:
                log.terminate()
        pytest.fail(f"{service} did not say {text!r} in {seconds:g} s:\n{self.log(service)}")

    def log(self, service: str) -> str:
        """Return all that a service has said."""
        done = command("docker", "logs", service)
        return done.stdout + done.stderr

    def exit_code(self, seconds: float = 180.0) -> int:
        """Wait for the client to end."""
        return int(docker("wait", "ministream", timeout=seconds))

    def files(self, into: Path) -> list[Path]:
        """Copy what is in the output volume to `into`, and return the reconstructions."""
        docker("cp", "receiver:/mnt/output/.", into)
        return sorted(into.glob("[0-9]*-recon.h5"))


@pytest.fixture
def engine() -> Iterator[None]:
    """Have the engine for oneself."""
    with alone():
        yield


@pytest.fixture
def stack(tmp_path: Path, engine: None) -> Iterator[Callable[..., Stack]]:  # noqa: ARG001 - held, not used
    """Make a stack: `stack(producer={...})` sets a service's environment; in the end nothing of it is left."""
    stacks: list[Stack] = []

    def make(compose: str = "v1", volumes: dict[str, Any] | None = None, **services: dict[str, Any]) -> Stack:
        override = tmp_path / "override.yaml"
        environment = {
            name: {"environment": {k: str(v) for k, v in values.items()}} for name, values in services.items()
        }
        volume = {"name": f"{PROJECT}-output", **(volumes or {})}
        override.write_text(yaml.safe_dump({"services": environment, "volumes": {"output_data": volume}}))
        stacks.append(Stack(COMPOSES[compose], override))
        return stacks[-1]

    yield make
    for each in stacks:
        each("down", "--volumes", "--remove-orphans", "--timeout", "5")


def inspect(name: str) -> dict[str, Any]:
    """Return what the engine knows of a container or an image."""
    (found,) = json.loads(docker("inspect", name))
    return dict(found)
