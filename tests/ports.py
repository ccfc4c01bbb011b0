"""Ports for tests: below those that the system gives to clients, and each test process from a range of its own."""

import os
import random
import socket

_FIRST, _EACH, _PROCESSES = 12_000, 5_000, 4


def some_port(count: int = 1) -> int:
    """Return the first of `count` ports that no other test process takes."""
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _PROCESSES
    first = _FIRST + process * _EACH
    chance = random.SystemRandom()  # Hypothesis seeds the other one: all runs would take the same ports
    while not _are_free(port := chance.randrange(first, first + _EACH - count), count):
        pass
    return port


def _are_free(first: int, count: int) -> bool:
    try:
        for port in range(first, first + count):
            socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True
