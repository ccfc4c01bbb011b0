"""`ministream client`: a tunnel between two facilities, a receiver at its end, and the scan's story told to its end.

The client itself sees no frame. It asks both control servers for the tunnel, hands the receiver the tunnel's
listeners, follows the events of the run (those of the producer's programs come with them, through the stream), and
releases the tunnel. It ends with 0 if the scan is complete.
"""

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from aps_mini_apps.dist.settings import DistSettings
from aps_mini_apps.report.live import Display
from aps_mini_apps.report.progress import Progress
from aps_mini_apps.report.story import summary_lines, verdict_on
from ministream.base.errors import UserError
from ministream.base.lifecycle import SLICE, StopFlag, Stopped
from ministream.base.log import get_logger
from ministream.commands.settings import ClientSettings
from ministream.commands.tunnel import tunnel_figures
from receiver.access import Access
from receiver.caller import AwayError, Caller, RefusedError, UnknownError
from receiver.desk import ENDED
from s2cs.addresses import Address, parse_address
from s2cs.client import Gateway, GatewayError, Tunnel, UnknownCallError

LEAVE = 20.0
"""Seconds in which a run that was asked to stop must end: its workers have 10 to write their last files."""

RETRY = 0.25
"""Seconds between two attempts to reach a receiver that is away."""

RECONSTRUCTION = ("center", "window_length", "window_step", "window_iter", "write_freq", "backend")

T = TypeVar("T")


def main(settings: ClientSettings) -> int:
    """Follow one scan; 0 when it is complete, 1 with the reason when it is not."""
    stop, began = StopFlag().install(), time.monotonic()
    targets, encrypted = _targets(settings), not settings.plaintext
    with _connected(settings, stop) as (producer, consumer, caller):
        asked = time.monotonic()
        with Tunnel(producer, consumer, targets, encrypted=encrypted, rate=settings.rate) as tunnel:
            setup = time.monotonic() - asked
            figures = tunnel_figures(tunnel, consumer, setup)
            _announce(tunnel, setup)
            run = caller.begin(tunnel.listeners, _options(settings), figures)
            following = _Following(settings, caller, run, tunnel, stop)
            ending = following.to_the_end()
            with suppress(GatewayError, Stopped):  # what flowed is worth a line, not an error
                figures = tunnel_figures(tunnel, consumer, setup)
        get_logger().info("tunnel released", uid=tunnel.uid)
    seconds = time.monotonic() - began
    for line in _summary(ending, following.progress, figures, seconds):
        following.console.print(line, markup=False, highlight=False, soft_wrap=True)
    if ending["state"] == "complete":
        return 0
    get_logger().error(str(ending["reason"]))
    return 1


@contextmanager
def _connected(settings: ClientSettings, stop: StopFlag) -> Iterator[tuple[Gateway, Gateway, Caller]]:
    """Yield both control servers and the receiver, once all of them answer."""
    waiting = _Waiting(settings.timeout, stop)
    with ExitStack() as stack:
        gateways = []
        for side in ("producer", "consumer"):
            address, folder = getattr(settings, f"{side}_s2cs"), Path(getattr(settings, f"{side}_access"))
            name = f"{side} gateway"
            gateway = waiting.until(name, partial(_gateway, address, folder, name, stop))
            gateways.append(stack.enter_context(gateway))
        caller = waiting.until("receiver", partial(_receiver, settings))
        yield gateways[0], gateways[1], stack.enter_context(caller)


class _Waiting:
    """Waits for services that another machine starts: by asking them, for nobody here could be told."""

    def __init__(self, timeout: float, stop: StopFlag) -> None:
        self._timeout, self._stop = timeout, stop
        self._deadline = time.monotonic() + timeout

    def until(self, what: str, attempt: Callable[[], T]) -> T:
        """Return what `attempt` does, as soon as it does; say what is waited for, and why.

        Raises
        ------
        UserError
            If the service refuses, or is not ready in time.
        """
        said = ""
        while True:
            self._stop.raise_if_set()
            try:
                return attempt()
            except UserError as error:
                if isinstance(error, RefusedError) or (isinstance(error, GatewayError) and error.reached):
                    raise
                if time.monotonic() > self._deadline:
                    raise UserError(f"not ready within {self._timeout:g} s: {error}") from error
                if str(error) != said:
                    said = str(error)
                    get_logger().info("waiting", service_awaited=what, reason=said)
            time.sleep(SLICE)


def _gateway(address: str, folder: Path, name: str, stop: StopFlag) -> Gateway:
    """Return a control server that answers."""
    try:
        token = (folder / "token").read_text().strip()
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; put your token for the {name} there") from error
    gateway = Gateway(address, name=name, ca=[folder / "ca.crt"], token=token, stop=stop)
    try:
        with suppress(UnknownCallError):  # an existing SciStream server: it answers
            gateway.list()
    except BaseException:
        gateway.close()
        raise
    return gateway


def _receiver(settings: ClientSettings) -> Caller:
    """Return the receiver, which answers."""
    caller = Caller(settings.receiver, Access(Path(settings.receiver_access)), plaintext=settings.plaintext_receiver)
    try:
        caller.status()
    except BaseException:
        caller.close()
        raise
    return caller


def _targets(settings: ClientSettings) -> list[str]:
    """Return where the distributor listens for each worker."""
    first = parse_address(settings.target)
    workers = settings.workers or _distribution(settings).workers
    return [str(Address(first.host, first.port + rank)) for rank in range(workers)]


def _distribution(settings: ClientSettings) -> DistSettings:
    return DistSettings.load("dist", config=settings.config_file, environment=os.environ)


def _options(settings: ClientSettings) -> dict[str, Any]:
    chosen = {name: getattr(settings, name) for name in RECONSTRUCTION}
    return {name: value for name, value in chosen.items() if value is not None}


def _announce(tunnel: Tunnel, setup: float) -> None:
    log = get_logger()
    for warning in tunnel.warnings:
        log.warning(warning)
    if not tunnel.encrypted:
        log.warning("the way between the gateways is not encrypted (--plaintext)")
    log.info(
        "tunnel open",
        uid=tunnel.uid,
        listeners=", ".join(tunnel.listeners),
        targets=", ".join(tunnel.targets),
        seconds=round(setup, 2),
    )


class _Following:
    """The events of one run, shown as they come; a thread reads them, so that this one can heed a stop."""

    def __init__(self, settings: ClientSettings, caller: Caller, run: str, tunnel: Tunnel, stop: StopFlag) -> None:
        self.console = Console()
        self._display = Display(self.console, style=settings.log_format, service="client")
        self._settings, self._caller, self._run, self._tunnel, self._stop = settings, caller, run, tunnel, stop
        self._news: queue.Queue[dict[str, Any] | UserError] = queue.Queue()
        self._over = threading.Event()
        self._deadline = 0.0
        """When a run that was asked to stop must have ended; 0: it was not asked."""

    @property
    def progress(self) -> Progress:
        """How far the scan is."""
        return self._display.progress

    def to_the_end(self) -> Mapping[str, Any]:
        """Return the final event of the run, or one in its place that says why there is none."""
        reader = threading.Thread(target=self._read, name=f"events of {self._run}", daemon=True)
        reader.start()
        try:
            with self._display:
                return self._follow()
        except UserError as error:
            return {"state": "failed", "reason": str(error)}
        finally:
            self._over.set()

    def _follow(self) -> Mapping[str, Any]:
        while True:
            self._look_around()
            try:
                news = self._news.get(timeout=SLICE)
            except queue.Empty:
                self._display.refresh()
                continue
            if isinstance(news, UserError):
                raise self._so_far(news)
            self._display.show({name: value for name, value in news.items() if name != "n"})
            if news.get("event") == ENDED:
                return news

    def _look_around(self) -> None:
        """Stop the run, once, if this program shall stop or the tunnel is lost; give it up if it does not end."""
        if self._deadline:
            if time.monotonic() > self._deadline:
                raise UserError(f"the receiver did not end the run within {LEAVE:g} s: {self._why()}")
        elif why := self._why():
            self._deadline = time.monotonic() + LEAVE
            get_logger().warning("stopping the run", reason=why)
            self._caller.stop(self._run, why)

    def _why(self) -> str:
        if self._tunnel.lost:
            return f"the tunnel is lost: {self._tunnel.lost}"
        try:
            self._stop.raise_if_set()
        except Stopped as reason:
            return f"the client was stopped ({reason})"
        return ""

    def _so_far(self, error: UserError) -> UserError:
        if isinstance(error, UnknownError):
            error = UserError("the receiver was restarted in mid-scan")
        done, files = self.progress.figures()["reconstructed"], self.progress.files
        written = f"files so far: {', '.join(files)}" if files else "no file was written"
        return UserError(f"{error}; {done} projections reconstructed; {written}")

    def _read(self) -> None:
        """Put all events into the queue, over as many connections as it takes, or the error that ends it."""
        after, silent_since = 0, time.monotonic()
        while not self._over.is_set():
            try:
                with _receiver(self._settings) as caller:
                    for event in caller.events(self._run, after):
                        silent_since = time.monotonic()
                        if event is not None:
                            after = event["n"]
                            self._news.put(event)
                            if event.get("event") == ENDED:
                                return
            except AwayError as error:
                if time.monotonic() - silent_since > self._settings.away:
                    self._news.put(UserError(f"the receiver is gone: {error}"))
                    return
            except UserError as error:
                self._news.put(error)
                return
            self._over.wait(RETRY)


def _summary(ending: Mapping[str, Any], progress: Progress, tunnel: Mapping[str, Any], seconds: float) -> list[str]:
    """Return the end of the story."""
    figures = progress.figures()
    state = "complete" if ending["state"] == "complete" else str(ending["reason"])
    lines = [
        ("projections made", f"{figures['sent']} of {figures['total']}" if figures["total"] else "–"),
        ("projections distributed", str(figures["received"] or "–")),
        ("projections reconstructed", str(figures["reconstructed"])),
        ("projections a second", f"{figures['rate']:.1f}"),
        ("frames lost", str(progress.lost)),
        ("files written", str(len(progress.files))),
        ("seconds", f"{seconds:.1f}"),
        ("tunnel", _tunnel_line(tunnel)),
    ]
    hints = [f"At the receiver: {ending[name]}" for name in ("last", "report") if ending.get(name)]
    return summary_lines(verdict_on(state, progress.lost), lines, *hints)


def _tunnel_line(tunnel: Mapping[str, Any]) -> str:
    kind = "encrypted" if tunnel["encrypted"] else "in plain"
    size = f", {tunnel['bytes_out'] / 1e6:.1f} MB" if tunnel.get("bytes_out") else ""
    proxy, restarts = tunnel["proxy"], tunnel["restarts"]
    return f"{proxy}, {kind}, open in {tunnel['setup_ms']:.0f} ms{size}, {restarts} restarts"
