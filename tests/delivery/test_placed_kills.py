"""Both sites and the broker killed again and again while files come in: each ends where it belongs, once."""

import hashlib
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.delivery.placed_sites import SITES, Broker, Pair, broker, pair, placed_where_the_rule_says
from tests.delivery.sync_programs import until

LARGE = 64_000_000
"""Bytes of the largest files, of which there are a few."""

LONGEST_LIFE = 1.0
"""Seconds that all run, at most, before one of them is killed."""

FILLINGS = {"zero": b"\x01", "one": b"\xfe", "both": b"\x0f"}


def make(folder: Path, number: int, chance: random.Random) -> tuple[Path, str]:
    """Write a file and return where it is, and where it belongs: it begins with its number, in bytes that tie."""
    place = chance.choice(["zero", "zero", "zero", "one", "one", "one", "both"])
    size = LARGE if number % 50 == 7 else chance.randrange(100_000)
    path = folder / f"f{number:04}.h5"
    pattern = "".join(f"{digit}{15 - digit:x}" for digit in map(int, f"{number:04}"))
    with path.open("wb") as file:
        file.write(bytes.fromhex(pattern) + FILLINGS[place] * 8)
        while size > 0:
            size -= file.write(FILLINGS[place] * min(size, 1 << 20))
    return path, place


def upload(both: Pair, site: str, path: Path, over: threading.Event) -> None:
    """Upload a file as a stubborn client does: again until the site says that it has it."""
    while not over.is_set():
        try:
            with path.open("rb") as file:
                if both.upload(site, path.name, file).status_code == 201:
                    return
        except httpx.TransportError:
            over.wait(0.05)


def kill_at_random(both: Pair, between: Broker, chance: random.Random, kills: int) -> None:
    for _ in range(kills):
        time.sleep(chance.random() * LONGEST_LIFE)
        what = chance.choice([*SITES, "broker"])
        if what == "broker":
            between.kill()
            time.sleep(chance.random() * LONGEST_LIFE)
            between.start()
        else:
            both.kill(what)
            both.start(what)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("files", "kills"), [(30, 4), pytest.param(1000, 50, marks=pytest.mark.faults)])
def test_killed_at_random_every_file_is_where_the_rule_says_once(tmp_path, files, kills):
    chance, over = random.Random(files), threading.Event()
    (tmp_path / "sent").mkdir()
    made = [make(tmp_path / "sent", number, chance) for number in range(files)]
    began = time.monotonic()
    with broker("kafka", tmp_path) as between, pair(tmp_path, "--broker", between.url) as both:
        with ThreadPoolExecutor(4) as clients:
            for path, _ in made:
                for site in SITES if chance.random() < 0.1 else [chance.choice(SITES)]:
                    clients.submit(upload, both, site, path, over)
            try:
                kill_at_random(both, between, chance, kills)
                clients.shutdown()
            finally:
                over.set()
        until(lambda: all(site in both.running for site in SITES), "both run")
        both.rest()
        placed_where_the_rule_says(
            both,
            {
                site: {path.name: path.stat().st_size for path, place in made if place in (site, "both")}
                for site in SITES
            },
        )
        assert both.check()[0] == 0
        digests = {hashlib.sha256(path.read_bytes()).digest() for path, _ in made}
        kept = [path for site in SITES for path in (tmp_path / site / "files").rglob("*") if path.is_file()]
        assert {hashlib.sha256(path.read_bytes()).digest() for path in kept} == digests
        assert both.ask("zero", "/set-aside", who="operator").json() == []
        both.kill()
        print(
            f"{files} files, {kills} kills, {time.monotonic() - began:.0f} s, {both.most_memory / 1e6:.0f} MB at most"
        )
        assert both.most_memory < 150e6


def test_sites_that_only_wait_hear_a_broker_again_that_has_forgotten_all(tmp_path):
    """Their clients wait where the old broker had got to, and tell nobody."""
    zeros = {f"f{number}.h5": bytes([number]) + bytes(100) for number in range(12)}
    ones = {f"g{number}.h5": bytes([number]) + b"\xff" * 100 for number in range(12)}
    with broker("kafka", tmp_path) as between, pair(tmp_path, "--broker", between.url) as both:
        for name, content in [*zeros.items(), *ones.items()]:
            assert both.upload("one" if name in zeros else "zero", name, content).status_code == 201
        both.rest()
        between.kill()
        between.start()
        assert both.upload("one", "late0.h5", bytes(50)).status_code == 201
        assert both.upload("zero", "late1.h5", b"\xff" * 50).status_code == 201
        both.rest()
        assert both.listed("zero") == {**dict.fromkeys(zeros, 101), "late0.h5": 50}
        assert both.listed("one") == {**dict.fromkeys(ones, 101), "late1.h5": 50}
