"""Real programs in real processes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from docker import DockerClient

from s2cs.dataservers.runner_docker import OWN_IMAGE, engine

PATIENCE = 60.0
DOCKER = Path("/var/run/docker.sock")


@dataclass
class Program:
    """One `ministream` program that runs; its log is read line by line as JSON."""

    process: subprocess.Popen[str]
    events: list[dict[str, Any]] = field(default_factory=list)

    def wait_for(self, event: str) -> dict[str, Any]:
        """Read the log up to the next `event`; fail if the program ends before."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._take(line)
            if self.events[-1]["event"] == event:
                return self.events[-1]
        pytest.fail(f"the program ended without the event {event!r}: {self.events}")

    def _take(self, line: str) -> None:
        try:
            self.events.append(json.loads(line))
        except ValueError:
            self.events.append({"level": "raw", "event": line.rstrip()})

    def finish(self, *, stop: int | None = None) -> int:
        """Read the log to its end and return the exit code; `stop` is a signal to send first."""
        if stop is not None:
            self.process.send_signal(stop)
        out, _ = self.process.communicate(timeout=PATIENCE)
        for line in out.splitlines():
            self._take(line)
        return self.process.returncode

    def last(self, event: str) -> dict[str, Any]:
        return [e for e in self.events if e["event"] == event][-1]

    @property
    def errors(self) -> list[str]:
        return [e["event"] for e in self.events if e["level"] in ("error", "critical", "raw")]


Start = Callable[..., Program]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start `ministream ARGUMENTS…` with JSON logs in an empty folder; what still runs in the end is killed."""
    running: list[Program] = []

    def begin(*arguments: str | Path, **environment: str) -> Program:
        command = [sys.executable, "-m", "ministream", *map(str, arguments), "--log-format", "json"]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=tmp_path,
            env={**os.environ, **environment},
        )
        running.append(Program(process))
        return running[-1]

    yield begin
    for program in running:
        if program.process.poll() is None:
            program.process.send_signal(signal.SIGKILL)
        program.process.communicate()


@pytest.fixture
def docker_client() -> DockerClient:
    """A client of the Docker engine, which has the image of the proxies."""
    if not (os.environ.get("DOCKER_HOST") or DOCKER.exists()):
        pytest.skip("no Docker engine here: tests/docker/engine.sh makes one")
    client = engine()
    if not client.images.list(OWN_IMAGE):
        pytest.skip(f"the Docker engine has no image {OWN_IMAGE}: tests/docker/engine.sh makes it")
    return client
