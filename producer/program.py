"""`ministream producer`: acquisition and distributor as one service behind one entrance.

The two run as processes of their own, joined on this machine; their logs are repeated here. The scan begins when its
workers have come, however late. When it has ended, the service stays until it is told to stop, so that whoever
started it may still look; when one of the programs fails, it ends with that reason, which the workers are told, too.
"""

import math
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

from aps_mini_apps.daq.settings import DaqSettings
from aps_mini_apps.dist.settings import DistSettings
from ministream.base import log
from ministream.base.children import GRACE, Child, Children, command_line
from ministream.base.errors import UserError
from ministream.base.health import Health, serve_health
from ministream.base.lifecycle import StopFlag, Stopped
from producer.figures import Figures
from producer.settings import ProducerSettings

INSIDE = "tcp://127.0.0.1:*"
"""Where the acquisition listens for the distributor."""

MOMENT = 1.0
"""Seconds in which the program that failed first is found, when another one has ended for its sake."""


def main(settings: ProducerSettings) -> int:
    """Run the scan and wait to be stopped: 0 if that comes after its end."""
    stop = StopFlag().install()
    with Children(stop, log.repeat) as children:
        producer = Producer(settings, children)
        with serve_health(settings.health, producer.health, Figures(children)) as address:
            log.get_logger().info("serving", health=address)
            producer.run()
            try:
                stop.wait()
            except Stopped as reason:
                log.get_logger().info("stopped after the scan", reason=str(reason))
    return 0


class Producer:
    """One scan: its two programs, from their start to their end."""

    def __init__(self, settings: ProducerSettings, children: Children) -> None:
        self._settings, self._children = settings, children
        self._following = self._follow()
        self._state = Health(ready=False, reason="starting")
        self._timeout = self._check_sections()

    def health(self) -> Health:
        """Return how the service is; it can be used from the moment that workers can connect."""
        return self._state

    def run(self) -> None:
        """Run acquisition and distributor until both have ended.

        Raises
        ------
        UserError
            If one of them fails.
        Stopped
            If the service is asked to stop; the workers are told.
        """
        heard = self._start("daq", {"bind": INSIDE})
        self._start("dist", self._for_dist(str(heard["endpoint"])))
        self._state = Health(ready=True, reason="workers can connect")
        for _event in self._following:
            pass
        self._state = Health(ready=True, reason="the scan has ended")

    def _check_sections(self) -> float:
        """Return the distributor's timeout; raise UserError for a section that would take the programs apart."""
        config = self._settings.config_file
        daq = DaqSettings.load("daq", config=config, environment=os.environ, overrides={"bind": INSIDE})
        dist = DistSettings.load("dist", config=config, environment=os.environ)
        if daq.uses_pubsub() or dist.data_source_addr:
            raise UserError(
                "the producer joins acquisition and distributor itself: take the options of the old link (publisher_*,"
                " synch_*, mode, data_source_addr) out of the sections daq and dist"
            )
        return dist.timeout if "timeout" in dist.model_fields_set else 0.0

    def _for_dist(self, source: str) -> dict[str, Any]:
        """Return the distributor's options; unless its section says otherwise, it waits for its workers for ever."""
        given = {"source": source, "bind": self._settings.bind, "workers": self._settings.workers}
        return {"timeout": self._timeout} | {name: value for name, value in given.items() if value is not None}

    def _start(self, name: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Start the program `name`, wait until it listens, and return what it says then."""
        arguments = [name, *command_line(options, self._settings.config_file)]
        child = self._children.start(name, "ministream", arguments)
        while "listening" not in child.events:
            if next(self._following, None) is None:
                raise UserError(f"{name} ended before it was listening: see its log above")
        return child.events["listening"]

    def _follow(self) -> Iterator[bool]:
        """Yield as `Children.events` does, and raise UserError for the program that failed first.

        When the acquisition fails, its reason is still on its way through the distributor, behind the last frames.
        """
        deadline = math.inf
        for heard in self._children.events():
            failed = self._failed()
            if failed:
                grace = GRACE if failed.name == "daq" else MOMENT
                deadline = min(deadline, time.monotonic() + grace)
            if time.monotonic() > deadline:
                break
            yield heard
        if failed := self._failed():
            raise UserError(f"{failed.name} failed: {failed.reason}")

    def _failed(self) -> Child | None:
        return next((child for child in self._children.all if child.failed), None)
