"""Server and broker killed with -9 at random moments: nothing is lost, nothing comes twice, nothing is half."""

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
    files,
    free_port,
    packed,
    put,
    server_command,
    until,
)

LONGEST_LIFE = 1.0
"""Seconds from when a program works to when it may be killed at the latest."""

FILE = 3_000_000


class Producer(threading.Thread):
    """Puts files, one after another, until it is told to stop."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        super().__init__()
        self.sent: dict[str, bytes] = {}
        self._folder, self._chance, self._over = folder, chance, threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.1):
            name = f"f{len(self.sent):05}"
            self.sent |= put(self._folder, **{name: self._chance.randbytes(self._chance.randrange(FILE))})
            self._over.wait(self._chance.random() * 0.5)

    def stop(self) -> None:
        self._over.set()
        self.join()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kills", [4, pytest.param(100, marks=pytest.mark.faults)])
def test_killed_at_random_nothing_is_lost_nothing_comes_twice_and_nothing_is_half(tmp_path, kills):
    media, home, chance = tmp_path / "media", tmp_path / "home", random.Random(kills)
    (media / "head" / "bar").mkdir(parents=True)
    serving = server_command(media, "--insecure-no-auth", port=free_port())
    producer = Producer(media / "head" / "bar", random.Random(1))
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
    assert files(archive) == producer.sent
    got = files(home / "head" / "download")
    assert producer.sent.items() <= got.items()
    zips = [home / "head" / "download" / name for name in got if name.endswith(".zip")]
    times = Counter(name for zip_ in zips for name in packed(zip_))
    assert times == Counter(producer.sent.keys())
    print(f"{kills} kills: {len(zips)} batches of {len(producer.sent)} files, each once")
