"""How long the receiver takes from its start until the first window is folded in, without and with compiled code.

`ministream sirt` is started as a process, with the cache of compiled code in a folder that is empty (cold) or that an
earlier start has filled (warm), and is fed over the push link by this process, as a distributor feeds it: 512 columns,
16 slices, a window of 16 projections. Counted are the seconds until it says that the volume after the first window is
written. Less is better.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from results import Result, record

from aps_mini_apps.frames import Frame, FrameKind
from aps_mini_apps.links.push import PushSender

COLUMNS, SLICES, WINDOW = 512, 16, 16
PATIENCE = 300.0


def feed(sender: PushSender) -> None:
    """Send one window of projections, and the end of the scan."""
    pixels = np.ones((SLICES, COLUMNS), np.float32)
    for k in range(WINDOW):
        angle = np.pi * k / WINDOW
        sender.send(Frame(kind=FrameKind.PROJECTION, pixels=pixels, sequence=k, number=k, angle=angle))
    sender.end()


def start(folder: Path, cache: Path) -> float:
    """Return the seconds from the start of a receiver until its first window is folded in."""
    with PushSender("tcp://127.0.0.1:*", timeout=PATIENCE) as sender, ThreadPoolExecutor(1) as pool:
        command: list[Any] = [sys.executable, "-m", "ministream", "sirt", "--source", sender.endpoint]
        command += ["--window-length", WINDOW, "--window-step", WINDOW, "--write-freq", 1, "--threads", os.cpu_count()]
        command += ["--output", folder, "--pub-addr", "", "--log-format", "json"]
        environment = os.environ | {"NUMBA_CACHE_DIR": str(cache)}
        fed = pool.submit(feed, sender)
        began = time.perf_counter()
        with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True, env=environment) as receiver:
            assert receiver.stdout is not None
            events = (json.loads(line)["event"] for line in receiver.stdout if line.startswith("{"))
            written = next((time.perf_counter() for event in events if event == "file written"), None)
            fed.result()
            receiver.communicate()
        if written is None or receiver.returncode:
            raise RuntimeError(f"the receiver ended with {receiver.returncode} before its first window")
        return written - began


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_known_args()[0].rounds
    seconds: dict[str, list[float]] = {"start_cold": [], "start_warm": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as made:
            folder, cache = Path(made, "output"), Path(made, "cache")
            for taken in seconds.values():
                taken.append(start(folder, cache))
    results = [Result(name, statistics.median(taken), "s (smaller is better)") for name, taken in seconds.items()]
    for result in results:
        print(f"{result.name:30} {result.value:10.3g} {result.unit}")
    record(results)


if __name__ == "__main__":
    main()
