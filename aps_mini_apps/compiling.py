"""Compiled code: its cache on disk, which several processes use at once, and its threads."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
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


def _open_private(path: str, flags: int) -> int:
    """Open a file in a folder that others may write to: for this user alone, and not through a link of theirs."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def use_threads(wanted: int) -> int:
    """Let this thread's compiled code run on `wanted` threads, or as many as there are cores; return how many."""
    import numba  # takes a second to load

    used: int = min(wanted, numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(used)
    return used
