"""How many projections a second the whole pipeline sustains, and where the time goes.

A phantom of 512 columns x 32 rows x 360 projections is written to a DXchange file, then streamed as fast as the
programs take it (window of 16, one update per projection) through three processes; the same file is then
reconstructed in this process without a stream. The ratio of the two is what streaming costs.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numba
import numpy as np

from aps_mini_apps import batch
from aps_mini_apps.daq.hdf5 import open_scan
from aps_mini_apps.daq.phantom import PhantomSource

COLUMNS, ROWS, PROJECTIONS, WINDOW = 512, 32, 360, 16
ROUNDS = 3


def write_scan(path: Path) -> None:
    """Write the phantom's frames as a DXchange file."""
    source = PhantomSource(columns=COLUMNS, rows=ROWS, projections=PROJECTIONS)
    with h5py.File(path, "w") as file:
        file["exchange/data"] = np.stack(list(source.projections(range(PROJECTIONS))))
        file["exchange/data_white"] = np.stack(list(source.flats()))
        file["exchange/data_dark"] = np.stack(list(source.darks()))
        file["exchange/theta"] = np.rad2deg(source.angles)


def stream(path: Path, output: Path) -> dict[str, dict[str, float]]:
    """Run the pipeline; return the last event of each program."""
    command = [sys.executable, "-m", "ministream", "run", str(path), "--output", str(output), "--frame-rate", "0"]
    command += ["--window-length", str(WINDOW), "--center", str(COLUMNS / 2), "--log-format", "json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {event["service"]: event for event in events if event["event"] == "scan ended"}


def main() -> None:
    """Measure, and print a table."""
    numba.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.h5"
        write_scan(path)
        rates, alone, corrected = [], [], []
        for _ in range(ROUNDS):
            ended = stream(path, Path(folder) / "output")
            rates.append({name: event["rate"] for name, event in ended.items()})
            with open_scan(path) as source:
                began = time.perf_counter()
                frames = list(batch.projections(source))
                corrected.append(PROJECTIONS / (time.perf_counter() - began))
            began = time.perf_counter()
            batch.reconstruct_frames(frames, iterations=1, center=COLUMNS / 2, length=WINDOW, step=1)
            alone.append(PROJECTIONS / (time.perf_counter() - began))
    print(f"{COLUMNS} columns x {ROWS} rows x {PROJECTIONS} projections, window {WINDOW}, {os.cpu_count()} cores")
    sustained = float(np.median([rate["sirt"] for rate in rates]))
    print(f"  pipeline sustains            {sustained:8.1f} projections/s")
    print(f"  reading and correcting alone {np.median(corrected):8.1f} projections/s")
    print(f"  reconstruction alone         {np.median(alone):8.1f} projections/s")
    print(f"  pipeline / reconstruction    {sustained / float(np.median(alone)):8.2f}")


if __name__ == "__main__":
    main()
