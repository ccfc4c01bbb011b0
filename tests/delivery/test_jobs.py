"""A job that was killed goes on: real processes, killed for real, on both databases."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

PROGRAM = """
import sys
from delivery import jobs

@jobs.step("step")
def step(number):
    print("step", number, flush=True)
    if number == 2 and "stall" in sys.argv:
        sys.stdin.read()
    return number

@jobs.job("job")
def job(count):
    return sum(step(number) for number in range(count))

with jobs.running(sys.argv[1]):
    print("running", flush=True)
    if "start" in sys.argv:
        jobs.start("a job", job, 4)
        jobs.start("a job", job, 4)
    print("result", jobs.result("a job"), flush=True)
"""


def program(url: str, *words: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command: Sequence[str] = [sys.executable, "-c", PROGRAM, url, *words]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.timeout(300)
def test_a_job_killed_in_a_step_goes_on_there(database_url):
    first = program(database_url, "start", "stall")
    lines = []
    while not lines or lines[-1] != "step 2":
        lines.append(first.stdout.readline().strip())
        assert lines[-1], lines
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert lines == ["running", "step 0", "step 1", "step 2"]
    again, _ = program(database_url).communicate(timeout=120)
    assert sorted(again.split("\n")[:-1]) == ["result 6", "running", "step 2", "step 3"]
