"""Many tickets at once, of mixed sizes, on a tight disk; also while the service is killed again and again."""

import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from tests.delivery.sync_programs import until
from tests.delivery.ticket_service import Service, accepted, contents, ticket_service

SPACE = 4_000_000


@contextmanager
def watched(service: Service) -> Iterator[list[int]]:
    """Look at the store all the time; yields the most bytes that were seen in it, finished or not."""
    most, ended = [0], threading.Event()

    def look() -> None:
        while not ended.wait(0.005):
            sizes = []
            for path in service.store.rglob("*.zip*"):
                try:
                    sizes.append(path.stat().st_size)
                except FileNotFoundError:
                    continue
            most[0] = max(most[0], sum(sizes))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield most
    finally:
        ended.set()
        thread.join()


def crowd(folder, count: int, kills: int) -> dict[str, int]:
    """Ask for `count` files at once, fetch each when it is ready, and return how many tickets each took."""
    chance = random.Random(count)
    sizes = [chance.choice([1_000, 30_000, 300_000, 900_000, 3_500_000]) for _ in range(count)]
    options = "--space", SPACE, "--spare", 0, "--preparations", 4, "--ageing", "1 s", "--most-waiting", 2 * count
    with ticket_service(folder, *options) as service, watched(service) as most:
        files = {f"{index}.h5": service.write(f"{index}.h5", size) for index, size in enumerate(sizes)}
        asked = {
            accepted(service.operator.post("/download", json={"paths": name, "priority": chance.randrange(10)})): name
            for name in files
        }
        when = sorted(chance.sample(range(count), kills))
        fetched: dict[str, int] = {}
        while len(fetched) < count:
            if when and len(fetched) >= when[0]:
                when.pop(0)
                service.kill()
                service.start()
            for ticket in ready(service):
                name = asked[ticket]
                assert contents(service.fetch(ticket).content) == {name: files[name]}
                fetched[name] = fetched.get(name, 0) + 1
                service.operator.delete(f"/ticket/{ticket}")
        assert {status["state"] for status in service.operator.get("/tickets").json()} == {"cancelled"}
        until(lambda: not list(service.store.rglob("*.zip*")), "the store to be empty")
        assert most[0] <= SPACE
        assert most[0] > SPACE / 2  # the limit was felt
    return fetched


def ready(service: Service) -> list[str]:
    statuses: list[dict[str, str]] = []

    def look() -> bool:
        try:
            statuses[:] = service.operator.get("/tickets").json()
        except httpx.TransportError:
            return False
        live = [status["state"] for status in statuses if status["state"] != "cancelled"]
        return "ready" in live or not live

    until(look, "a ticket to be ready")
    return [status["ticketId"] for status in statuses if status["state"] == "ready"]


def test_many_tickets_on_a_tight_disk_are_all_served(tmp_path):
    assert set(crowd(tmp_path, 30, kills=1).values()) == {1}


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_five_hundred_tickets_on_a_tight_disk_are_all_served(tmp_path):
    assert set(crowd(tmp_path, int(os.environ.get("TICKETS", "500")), kills=0).values()) == {1}


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_kills_on_a_tight_disk_lose_no_ticket_and_serve_none_twice(tmp_path):
    kills = int(os.environ.get("KILLS", "25"))
    assert set(crowd(tmp_path, 3 * kills, kills).values()) == {1}
