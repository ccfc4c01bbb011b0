"""`delivery broker`: fetches what is new from a server, verifies it, says so, and has it processed.

Everything on its disk is right at any moment (`inbox`), so that a stop may come at any moment, too: the work is done
in a thread that the program leaves behind when it ends.
"""

import contextvars
import random
import threading
from concurrent.futures import Future

from delivery.archive.parcels import Damaged, verify
from delivery.sync.fetching import Busy, Server
from delivery.sync.hooks import Hook, find_hook
from delivery.sync.inbox import Inbox, Record
from delivery.sync.settings import BrokerSettings
from ministream.base.errors import UserError
from ministream.base.lifecycle import SLICE, StopFlag
from ministream.base.log import get_logger

LONGEST_PAUSE = 300.0
"""Seconds between two tries, however long the server has been down."""


def main(settings: BrokerSettings) -> int:
    """Mirror until SIGINT or SIGTERM; with `once`, ask once."""
    stop = StopFlag().install()
    inbox = Inbox(settings.datadir / settings.project / "download", settings.ext)
    hook = find_hook(settings.hook, keep_zips=settings.keep_zips)
    server = Server(settings.api, settings.project, settings.ext, settings.wait, settings.token_file)
    broker = Broker(server, inbox, hook)
    done: Future[int] = Future()
    work = contextvars.copy_context()  # the logs' own fields
    threading.Thread(target=work.run, args=(_work, broker, server, settings, done), daemon=True).start()
    while not done.done():
        stop.raise_if_set()
        threading.Event().wait(SLICE)
    return done.result()


class Broker:
    """One mirror: what `server` offers ends up in `inbox`, and `hook` is called with each zip."""

    def __init__(self, server: Server, inbox: Inbox, hook: Hook) -> None:
        self._server, self._inbox, self._hook = server, inbox, hook

    def turn(self) -> bool:
        """Take one batch from wherever it is to its end; returns whether there was one.

        Raises
        ------
        UserError
            If it has to be tried again later: the server is down, the disk full, the batch damaged.
        """
        try:
            record = self._inbox.record()
            if record is None or record.stage == "fetching":
                record = self._receive(record)
            if record:
                self._acknowledge(record)
            return record is not None
        finally:
            self._process()

    def _receive(self, record: Record | None) -> Record | None:
        if record is None or not self._inbox.has_arrived(record):
            record = self._server.fetch(self._inbox, record)
            if record is None:
                return None
        arrived = self._inbox.has_arrived(record)
        try:
            digests = verify(self._inbox.path(record) if arrived else self._inbox.part)
        except Damaged as error:
            if not record.batch and not arrived:  # that server may not have it any more
                error = Damaged(f"{error}; it is kept as {self._inbox.set_aside(record)}")
            self._inbox.finish()
            raise error
        return self._inbox.arrive(record, digests)

    def _acknowledge(self, record: Record) -> None:
        """Tell the server what is here; the zip is as good if the server offers it no more."""
        if record.batch:
            self._server.acknowledge(record)
        get_logger().info("received", zip=record.name, files=len(record.digests))
        self._inbox.finish()

    def _process(self) -> None:
        """Call the hook with all that waits for it; what fails waits for the next turn."""
        for zip_ in self._inbox.todo():
            try:
                self._hook(zip_)
            except UserError as error:
                get_logger().error("not processed, will be tried again", zip=zip_.name, reason=str(error))
            else:
                self._inbox.done(zip_)


def _work(broker: Broker, server: Server, settings: BrokerSettings, done: "Future[int]") -> None:
    try:
        done.set_result(_once(broker) if settings.once else _for_ever(broker, server, settings))
    except BaseException as error:
        done.set_exception(error)


def _once(broker: Broker) -> int:
    broker.turn()
    return 0


def _for_ever(broker: Broker, server: Server, settings: BrokerSettings) -> int:
    """Ask again after the interval, at once if the server holds requests, ever later while something is wrong."""
    failures = 0
    while True:
        try:
            came = broker.turn()
            pause = 0.0 if settings.wait and (came or server.held) else settings.interval
            failures = 0
        except (UserError, OSError) as error:
            failures += 1
            pause = min(settings.interval * 2 ** min(failures - 1, 20), LONGEST_PAUSE)
            pause = max(pause * random.uniform(0.8, 1.2), error.seconds if isinstance(error, Busy) else 0.0)  # noqa: S311
            get_logger().warning("will try again", seconds=round(pause, 1), reason=str(error))
        threading.Event().wait(pause)
