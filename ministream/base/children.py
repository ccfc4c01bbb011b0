"""Child programs of another one of ours: started, listened to, ended.

Each child logs JSON lines to its standard output; a thread per child puts them, parsed, into one bounded queue.
A child leads its own session, so that Ctrl-C reaches this process alone, which then ends the others in order. It
knows this process's number, so that it ends by itself should this process be killed.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ministream.base.errors import UserError
from ministream.base.lifecycle import PARENT, SLICE, StopFlag
from ministream.base.owner import Owner

GRACE = 10.0
"""Seconds that a child is given to write its last file before it is killed."""


@dataclass
class Child:
    """One program that was started."""

    name: str
    process: subprocess.Popen[str]
    serves: bool = False
    last_error: str = ""
    events: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The latest event of each kind."""

    @property
    def failed(self) -> bool:
        """The program has ended, and not well."""
        return self.process.poll() not in (None, 0)

    @property
    def reason(self) -> str:
        """Why it has failed, as far as can be told."""
        code = self.process.returncode
        if code < 0:
            hint = "; the system does that when memory runs out" if -code == signal.SIGKILL else ""
            return f"ended by signal {-code} ({signal.strsignal(-code)}{hint})"
        return self.last_error or f"exit code {code}"


class Children(Owner):
    """All programs of one run; leaving the context ends those that still run.

    Every event that any of them logs, to the very last, is passed to `show` with the program's name as its `service`.
    """

    def __init__(self, stop: StopFlag, show: Callable[[dict[str, Any]], None]) -> None:
        self.all: list[Child] = []
        self._stop, self._show = stop, show
        self._lines: queue.Queue[tuple[Child, dict[str, Any]]] = queue.Queue(maxsize=10_000)
        self._stack = ExitStack()
        self._readers: dict[str, threading.Thread] = {}

    def close(self) -> None:
        """End those that still run."""
        self.end()
        self._stack.close()

    def start(self, name: str, module: str, arguments: Sequence[str], *, serves: bool = False) -> Child:
        """Start `python -m MODULE ARGUMENTS…` and listen to it under `name`.

        One that `serves` has no end of its own: `events` does not wait for it. Events that it only repeats (`via` says
        so) keep the name of the service whose they are.
        """
        command = [sys.executable, "-m", module, *arguments, "--log-format", "json"]
        process = self._stack.enter_context(
            subprocess.Popen(  # noqa: S603 - our own interpreter and program, no shell
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
                env={**os.environ, PARENT: str(os.getpid())},
            )
        )
        child = Child(name, process, serves=serves)
        self.all.append(child)
        reader = threading.Thread(target=self._read, args=(child,), name=f"log of {name}", daemon=True)
        reader.start()
        self._readers[name] = reader
        return child

    def _read(self, child: Child) -> None:
        for line in child.process.stdout or ():
            try:
                event = json.loads(line)
            except ValueError:
                event = None
            if not isinstance(event, dict):  # no line of ours: a library's, or the interpreter's last words
                event = {"level": "error", "event": line.rstrip()}
            name = "via" if event.get("via") else "service"
            self._lines.put((child, event | {name: child.name}))

    def events(self) -> Iterator[bool]:
        """Yield True after each event, False when nothing came for a moment; end when all that do not serve have ended.

        Raises `Stopped` when this program is asked to stop.
        """
        while True:
            self._stop.raise_if_set()
            quiet = not any(self._readers[child.name].is_alive() for child in self.all if not child.serves)
            try:
                child, event = self._lines.get(timeout=0 if quiet else SLICE)
            except queue.Empty:
                if quiet:
                    return
                yield False
                continue
            self._take(child, event)
            yield True

    def follow(self) -> Iterator[bool]:
        """Go through `events` and raise UserError, with its name and reason, as soon as a program has failed."""
        for heard in self.events():
            if not heard:
                self._check()
            yield heard
        self._check()

    def _check(self) -> None:
        for child in self.all:
            if child.failed:
                raise UserError(f"{child.name} failed: {child.reason}")

    def _take(self, child: Child, event: dict[str, Any]) -> None:
        if not event.get("via"):  # else it repeats what another program said
            child.events[str(event.get("event"))] = event
            if event.get("level") == "error":
                child.last_error = str(event.get("event"))
        self._show(event)

    def end(self, some: Sequence[Child] | None = None) -> None:
        """Ask those that still run (or `some` of them) to stop, and kill what does not within `GRACE`.

        Their last events are shown.
        """
        ending = self.all if some is None else some
        for child in ending:
            if child.process.poll() is None:
                child.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE
        for child in ending:
            try:
                child.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
        for child in ending:
            reader = self._readers[child.name]
            while reader.is_alive():  # the queue must be emptied for the reader to end
                self._drain()
                reader.join(SLICE)
        self._drain()

    def _drain(self) -> None:
        while not self._lines.empty():
            self._take(*self._lines.get_nowait())


def command_line(options: Mapping[str, Any], config: Path | None = None) -> list[str]:
    """Return `options` of a program of ours as its command line, after its settings file."""
    given = [f"--config={config}"] if config else []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            given.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, Mapping):
            given += [f"--{flag}={key}={text}" for key, text in value.items()]
        else:
            given.append(f"--{flag}={value}")
    return given
