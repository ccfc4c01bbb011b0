"""Server and broker killed with -9 at random moments: nothing is lost, nothing comes twice, nothing is half."""

import hashlib
import random
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.delivery.sync_programs import (
    Program,
    address,
    broker_command,
    free_port,
    packed,
    put,
    server_command,
    until,
)

LONGEST_LIFE = 0.8
"""Seconds from when a program works to when it may be killed at the latest."""

FILE = 1_000_000
"""Bytes of the largest file."""

RUNS = [(seed, 25) for seed in range(1, 5)]
"""A hundred kills, server and broker by turns, in runs that each are looked at when they end."""


class Producer(threading.Thread):
    """Puts files, one after another, until it is told to stop."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        super().__init__()
        self.sent: dict[str, str] = {}
        self._folder, self._chance, self._over = folder, chance, threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.1):
            name = f"f{len(self.sent):05}"
            content = self._chance.randbytes(self._chance.randrange(FILE))
            self.sent[f"{name}.h5"] = hashlib.sha256(content).hexdigest()
            put(self._folder, **{name: content})
            self._over.wait(self._chance.random() * 0.5)

    def stop(self) -> None:
        self._over.set()
        self.join()


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of all .h5 files in a folder, by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("[!.]*.h5")}


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("seed", "kills"), [(0, 2), *(pytest.param(*run, marks=pytest.mark.faults) for run in RUNS)])
def test_killed_at_random_nothing_is_lost_nothing_comes_twice_and_nothing_is_half(tmp_path, seed, kills):
    media, home, chance = tmp_path / "media", tmp_path / "home", random.Random(seed)
    (media / "head" / "bar").mkdir(parents=True)
    serving = server_command(media, "--insecure-no-auth", port=free_port())
    producer = Producer(media / "head" / "bar", random.Random(seed))
    server = Program(*serving, folder=tmp_path)
    fetching = broker_command(address(server), "head", home)
    broker = Program(*fetching, folder=tmp_path)
    producer.start()
    try:
        for number in range(kills):
            broker.wait_for("will try again|received")
            time.sleep(chance.random() * LONGEST_LIFE)
            if number % 2:
                broker.kill()
                broker = Program(*fetching, folder=tmp_path)
            else:
                server.kill()
                server = Program(*serving, folder=tmp_path)
                address(server)
        producer.stop()
        archive = media / "head" / "archive"
        until(lambda: len(list(archive.glob("*.h5"))) == len(producer.sent), "all files are archived")
        until(lambda: not list((home / "head" / "download" / ".h5" / "todo").iterdir()), "all zips are unzipped")
    finally:
        producer.stop()
        server.kill()
        broker.kill()
    assert not [log for log in tmp_path.glob("*.log") if "internal fault" in log.read_text()]
    download = home / "head" / "download"
    assert digests(archive) == digests(download) == producer.sent
    times = Counter(name for zip_ in download.glob("*.zip") for name in packed(zip_))
    assert times == Counter(producer.sent.keys())
    left = [path.name for folder in (archive, download) for path in folder.glob(".*")]
    assert left == [".h5"]
