"""A ticket service, and the preparations in it, killed with -9 at random moments while files arrive and are asked for.

Nothing is lost (each ticket that was given out is served), nothing comes twice (agreed to be fetched once, it is), and
nothing is half (what arrives is what was written, whatever cuts there were; no rest stays in the store).
"""

import hashlib
import random
import threading
import time

import httpx
import pytest

from tests.delivery.sync_programs import until
from tests.delivery.ticket_service import Service, contents, ticket_service

LONGEST_LIFE = 1.0
"""Seconds from when the service works to when it may be killed at the latest."""

FILE = 3_000_000
"""Bytes of the largest file."""

AT_ONCE = 6
"""Tickets that somebody has open at a time: what waits when the service is killed."""

RUNS = [(seed, 25) for seed in range(1, 5)]


class Killer(threading.Thread):
    """Kills a service again and again, and starts it anew at its address."""

    def __init__(self, service: Service, chance: random.Random, kills: int) -> None:
        super().__init__()
        self._service, self._chance, self._kills = service, chance, kills

    def run(self) -> None:
        for _ in range(self._kills):
            time.sleep(self._chance.random() * LONGEST_LIFE)
            self._service.restart()


class Customer:
    """Asks for files and fetches them, each once, over connections that end at any moment."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.open: dict[str, str] = {}
        self.got: dict[str, bytes] = {}
        self._parts: dict[str, bytes] = {}

    def ask(self, name: str) -> None:
        """Ask for a file, until the answer has come: who gets no ticket asks again, and the first one expires."""
        answer = None
        while answer is None:
            answer = self._try("POST", "/download", json={"paths": [name], "downloads": 1})
        assert answer.status_code == 202, answer.text
        self.open[answer.json()["ticketId"]] = name

    def look(self) -> None:
        """Fetch what is ready."""
        for ticket, name in list(self.open.items()):
            status = self._try("GET", f"/ticket/{ticket}/status")
            if status is None:
                return
            state = status.json()["state"]
            assert state in ("waiting", "preparing", "ready"), status.text
            if state == "ready" and self._fetch(ticket, status.json()["volumes"][0]):
                assert name not in self.got
                self.got[name] = self._parts.pop(ticket)
                del self.open[ticket]

    def _fetch(self, ticket: str, volume: dict[str, object]) -> bool:
        """Fetch a ticket's archive, or the rest of it; returns whether all of it is there."""
        held = self._parts.setdefault(ticket, b"")
        headers = {"Range": f"bytes={len(held)}-", "If-Range": str(volume["etag"])} if held else {}
        try:
            with self._service.operator.stream("GET", f"/ticket/{ticket}/result", headers=headers) as answer:
                assert answer.status_code == (206 if held else 200)
                for block in answer.iter_raw():
                    self._parts[ticket] += block
        except httpx.TransportError:
            return False
        return True

    def _try(self, method: str, path: str, **request: object) -> httpx.Response | None:
        try:
            return self._service.operator.request(method, path, **request)
        except httpx.TransportError:
            return None


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("seed", "kills"), [(0, 2), *(pytest.param(*run, marks=pytest.mark.faults) for run in RUNS)])
def test_killed_at_random_no_ticket_is_lost_none_served_twice_and_nothing_is_half(tmp_path, seed, kills):
    chance, written = random.Random(seed), {}
    with ticket_service(tmp_path, "--keep", "1 hour") as service:
        customer, killer = Customer(service), Killer(service, random.Random(seed), kills)
        killer.start()
        while killer.is_alive() or customer.open:
            if killer.is_alive() and len(customer.open) < AT_ONCE:
                name = f"{len(written)}.h5"
                written[name] = service.write(name, chance.randrange(FILE))
                customer.ask(name)
            customer.look()
        killer.join()
        digests = {name: _digest(contents(archive)) for name, archive in customer.got.items()}
        assert digests == {name: _digest({name: content}) for name, content in written.items()}
        tickets = service.operator.get("/tickets").json()
        assert {(ticket["state"], ticket["downloads"]) for ticket in tickets} <= {("expired", 1), ("ready", 0)}
        for ticket in tickets:
            service.operator.delete(f"/ticket/{ticket['ticketId']}")
        until(lambda: not list(service.store.rglob("*.zip*")), "the store to be empty")
        assert not [log for log in tmp_path.glob("*.log") if "internal fault" in log.read_text()]


def _digest(files: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
