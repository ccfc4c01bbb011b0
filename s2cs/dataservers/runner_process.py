"""A proxy as a process of this machine, which outlives the control server that started it.

It leads a session of its own, so that no signal meant for the control server reaches it, and its output goes to a
file. It is watched through a pidfd, which works for a process that an earlier control server has started, too, and
never means another process that has got the same number.
"""

import asyncio
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

from s2cs.dataservers import proc
from s2cs.dataservers.rendering import find_program
from s2cs.dataservers.spec import ProxyKind, ProxySpec
from s2cs.store import ProcessRecord

LOG = "proxy.log"
GRACE = 1.0
"""Seconds from SIGTERM to SIGKILL."""
LAST_WORDS = 600
"""Letters of a proxy's output that are told."""


class ProcessRunner:
    """Starts and finds processes."""

    async def start(self, kind: ProxyKind, spec: ProxySpec) -> "ProcessHandle":
        """Start the program, whose files are written already.

        Raises
        ------
        UserError
            If it is not installed.
        """
        argv = kind.command(spec)
        argv[0] = find_program(argv[0], kind.package)
        with open(os.open(spec.folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as log:  # noqa: PTH123
            process = subprocess.Popen(  # noqa: S603 - values are checked by ProxySpec
                argv, cwd=spec.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        handle = ProcessHandle(process.pid, spec)
        process.returncode = 0  # the handle waits for it: Popen shall neither do so nor complain
        return handle

    async def adopt(self, spec: ProxySpec, record: ProcessRecord) -> "ProcessHandle | None":
        """Find a proxy that an earlier control server started; None if it is gone."""
        try:
            handle = ProcessHandle(record.pid, spec)
        except OSError:
            return None
        if record.started and handle.record == record:
            return handle
        handle.close()
        return None


class ProcessHandle:
    """A process, by its pidfd.

    Raises
    ------
    ProcessLookupError
        If there is none with this number.
    """

    def __init__(self, pid: int, spec: ProxySpec) -> None:
        self._pidfd = -1
        self._pidfd = os.pidfd_open(pid)
        self.record = ProcessRecord(pid=pid, started=proc.started(pid))
        self._spec = spec
        self._ending = ""

    def close(self) -> None:
        """Let go of the process without ending it."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def __del__(self) -> None:
        self.close()

    def alive(self) -> bool:
        """Return whether it runs."""
        return proc.started(self.record.pid) == self.record.started != 0

    def listening(self) -> frozenset[int]:
        """Return the TCP ports on which it listens."""
        return proc.listening_ports(self.record.pid)

    async def wait(self) -> str:
        """Return how it ended, once it has."""
        await until_readable(self._pidfd)
        self._ending = self._ending or _reap(self._pidfd)
        return self._ending

    def last_words(self) -> str:
        """Return the end of what it said, in one line."""
        try:
            lines = (self._spec.folder / LOG).read_text(errors="replace").split("\n")
        except FileNotFoundError:
            return ""
        told = [line.strip() for line in lines if not line.startswith("[NOTICE]")]  # HAProxy's greeting
        return "; ".join(filter(None, told))[-LAST_WORDS:]

    async def stop(self) -> None:
        """End it with all that it started; afterwards none of its processes and ports remains."""
        if self._pidfd < 0:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)
            with suppress(TimeoutError):
                async with asyncio.timeout(GRACE):
                    await self.wait()
                break
        await end_members(self._spec.folder)
        self.close()


async def end_members(folder: Path, spare: frozenset[Path] = frozenset()) -> list[int]:
    """Kill the processes that write to a file below `folder`, but for the files to `spare`; return their numbers.

    For what outlived its proxy, or has a proxy's place and no session: both have nothing left to finish.
    """
    ended: list[int] = []
    while strays := [pid for pid, log in proc.members(folder).items() if log not in spare]:
        for pid in strays:
            with suppress(ProcessLookupError):
                pidfd = os.pidfd_open(pid)
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                await until_readable(pidfd)
                _reap(pidfd)
                os.close(pidfd)
        ended += strays
    return ended


async def until_readable(fd: int) -> None:
    """Wait for a file descriptor; through a copy, since asyncio lets one wait for each only."""
    loop, copy = asyncio.get_running_loop(), os.dup(fd)
    readable: asyncio.Future[None] = loop.create_future()
    loop.add_reader(copy, _set, readable)
    try:
        await readable
    finally:
        loop.remove_reader(copy)
        os.close(copy)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _reap(pidfd: int) -> str:
    """Say how a process ended; if it is a child of this one, let the system forget it."""
    try:
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return "it ended"
    if result is None or result.si_code == os.CLD_EXITED:
        return f"it ended with code {result.si_status if result else 0}"
    return f"it was ended by {signal.Signals(result.si_status).name}"
