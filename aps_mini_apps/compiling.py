"""Compiled code: its cache on disk, which several processes use at once, and its threads."""

import fcntl
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Let one process at a time of this user compile, or load compiled code.

    When two save code for one function at once, Numba's cache (0.68) may file both under one name, and whoever loads
    it then runs the wrong one.
    """
    path = Path(tempfile.gettempdir()) / f"mini-stream-kernels-{os.getuid()}.lock"
    with open(path, "w", opener=_open_private) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Ahead:
    """Compiles beside other work; who runs compiled code waits for it first.

    Numba's simplest threading layer, all that some machines have, ends a program that runs two parallel loops at once.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    def begin(self, compile_all: Callable[[], None]) -> None:
        """Let `compile_all` run from now on; a second call does nothing."""
        if self._thread is not None:
            return
        self._thread = threading.Thread(target=compile_all, name="compiler", daemon=True)
        self._thread.start()

    def wait(self, look: Callable[[], None]) -> None:
        """Return when it has ended, if it was begun; `look` is called now and then, and may raise to end the wait."""
        while self._thread is not None and self._thread.is_alive():
            look()
            self._thread.join(0.1)


def _open_private(path: str, flags: int) -> int:
    """Open a file in a folder that others may write to: for this user alone, and not through a link of theirs."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def use_threads(wanted: int) -> int:
    """Let this thread's compiled code run on `wanted` threads, or as many as there are cores; return how many."""
    import numba  # takes a second to load

    used: int = min(wanted, numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(used)
    return used
