"""`python -m receiver.worker`: a worker on another machine. It joins, reconstructs its slab of a run, and joins again.

It writes to the receiver's output folder, which is mounted here, too, and sends the log events of its reconstruction
to the receiver. Should the receiver not answer, or not know it any more, the reconstruction is ended (and writes what
it has): a run belongs to one life of the receiver.
"""

import os
import re
import secrets
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from aps_mini_apps.report.live import Display
from aps_mini_apps.sirt.settings import SirtSettings
from aps_mini_apps.sirt.writer import check_writable
from ministream.base.children import Child, Children, command_line
from ministream.base.cli import add_program, new_app
from ministream.base.errors import UserError
from ministream.base.lifecycle import SLICE, StopFlag, Stopped
from ministream.base.log import get_logger
from ministream.base.pulse import Pulse
from receiver.access import Access
from receiver.caller import AwayError, Caller, UnknownError
from receiver.settings import WorkerSettings

REPORT = 0.5
"""Seconds between two reports to the receiver, which are its heartbeat."""


def main(settings: WorkerSettings) -> int:
    """Serve run after run until a signal comes."""
    stop = StopFlag().install()
    check_writable(Path(settings.output))
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", settings.name or socket.gethostname())[:60]
    number = f"{name}-{secrets.token_hex(4)}"
    get_logger().info("joining", receiver=settings.receiver, name=name)
    while True:
        with _reached(settings, stop) as caller:
            try:
                _serve(caller, number, name, settings, stop)
            except (AwayError, UnknownError) as error:
                get_logger().warning("post lost", reason=str(error))


def _reached(settings: WorkerSettings, stop: StopFlag) -> Caller:
    """Return the receiver, once it answers.

    Raises
    ------
    UserError
        If it does not within the timeout.
    """
    deadline = time.monotonic() + settings.timeout
    while True:
        stop.raise_if_set()
        try:
            caller = Caller(settings.receiver, Access(Path(settings.access)), plaintext=settings.plaintext)
            caller.status()
            return caller
        except UserError:
            if time.monotonic() > deadline:
                raise
        time.sleep(SLICE)


def _serve(caller: Caller, number: str, name: str, settings: WorkerSettings, stop: StopFlag) -> None:
    """Take post after post."""
    while True:
        stop.raise_if_set()
        if (post := caller.join(number, name)) is not None:
            _Post(caller, number, post, settings, stop).serve()


class _Post:
    """One run of this worker."""

    def __init__(
        self, caller: Caller, number: str, post: Mapping[str, Any], settings: WorkerSettings, stop: StopFlag
    ) -> None:
        self._caller, self._number, self._post, self._settings = caller, number, post, settings
        self._stop = StopFlag(within=stop)
        self._unsaid: list[dict[str, Any]] = []
        self._display = Display(Console(), style=settings.log_format, service="worker")

    def serve(self) -> None:
        """Reconstruct, and tell the receiver of it to the end."""
        post, settings, ended = self._post, self._settings, ""
        get_logger().info("engaged", run=post["run"], serves_as=post["service"], source=post["options"].get("source"))
        told = {**self._threads(), **post["options"], "recon_output_dir": settings.output}
        with Children(self._stop, self._hear) as children:
            child = children.start(post["service"], "ministream", ["sirt", *command_line(told, settings.config_file)])
            try:
                self._follow(children)
            except Stopped as reason:
                ended = str(reason)
        self._tell(ended or self._outcome(child))

    def _threads(self) -> dict[str, int]:
        """Return what nobody has chosen: all cores of this machine."""
        chosen = SirtSettings.load("sirt", config=self._settings.config_file, environment=os.environ)
        return {} if "thread" in chosen.model_fields_set else {"thread": os.cpu_count() or 1}

    def _follow(self, children: Children) -> None:
        pulse = Pulse(REPORT)
        for heard in children.events():
            if not heard:
                self._display.refresh()
            if pulse.due():
                self._tell(None)

    def _hear(self, event: dict[str, Any]) -> None:
        self._display.show(event)
        self._unsaid.append(event)

    def _tell(self, ended: str | None) -> None:
        events, self._unsaid = self._unsaid, []
        if reason := self._caller.report(self._number, self._post["run"], events, ended):
            self._stop.request(reason)

    def _outcome(self, child: Child) -> str:
        return child.reason if child.failed else ""


app = new_app("A worker of the receiver on another machine.")
add_program(app, "worker", WorkerSettings, main)

if __name__ == "__main__":
    app()
