"""`ministream daq`: play a scan into a link, at the pace of a detector."""

import math
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

from aps_mini_apps.daq.hdf5 import open_scan
from aps_mini_apps.daq.pacing import Pacer
from aps_mini_apps.daq.phantom import PhantomSource
from aps_mini_apps.daq.random_source import RandomSource
from aps_mini_apps.daq.settings import DaqSettings, SourceName
from aps_mini_apps.daq.sources import Source
from aps_mini_apps.daq.stream import frame_count, frames
from aps_mini_apps.frames import Frame, FrameKind
from aps_mini_apps.geometry import check_center
from aps_mini_apps.links import FrameSender
from aps_mini_apps.links.pubsub import Publisher
from aps_mini_apps.links.push import PushSender
from ministream.base.errors import UserError
from ministream.base.lifecycle import StopFlag
from ministream.base.log import Logger, get_logger, heard_by
from ministream.base.pulse import Pulse


def main(settings: DaqSettings) -> int:
    """Send the scan and return 0 when all of it has left."""
    stop, log = StopFlag().install(), get_logger()
    with open_source(settings) as source, open_sender(settings, stop) as sender, ExitStack() as stack:
        log.info("listening", endpoint=sender.endpoint, synch=getattr(sender, "synch_endpoint", None))
        stack.enter_context(heard_by(sender.tell))
        scan = settings.scan or make_scan_name()
        log.info(
            "scan started",
            source=source.name,
            rows=source.rows,
            columns=source.columns,
            projections=len(source.angles),
            repeats=settings.repeats,
            flats=source.flat_count,
            darks=source.dark_count,
            scan=scan,
            center=source.center,
        )
        stream = frames(
            source,
            scan=scan,
            repeats=settings.repeats,
            interleave=settings.interleave,
            dtype=None if settings.chosen_pixel_type() == "native" else settings.chosen_pixel_type(),
        )
        pacer = Pacer(settings.interval(), per_pass=len(source.angles), pause=settings.iteration_sleep, stop=stop)
        send_scan(stream, sender, pacer, log, total=frame_count(source, settings.repeats))
    return 0


@contextmanager
def open_source(settings: DaqSettings) -> Iterator[Source]:
    """Open the source that `settings` choose, with their rotation axis if they name one; close it in the end.

    Raises
    ------
    UserError
        If there is none, it cannot be read, or the rotation axis lies outside its detector.
    """
    chosen = settings.chosen_source()
    unused = sorted((set().union(*_USED.values()) - _USED[chosen]) & settings.model_fields_set)
    if unused:
        get_logger().warning("options without effect on this source", source=chosen, options=",".join(unused))
    with _open(settings, chosen) as source:
        if settings.center is not None:
            source.center = _check_center(settings.center, source.columns)
        yield source


def _check_center(center: float, columns: int) -> float:
    try:
        return check_center(center, columns)
    except ValueError as error:
        raise UserError(f"--center: {error}") from error


_MADE_UP = {"rows", "columns", "projections", "seed", "flats", "darks"}
_USED: dict[SourceName, set[str]] = {
    "hdf5": {"file", "exchange", "first_row", "rows"},
    "random": _MADE_UP,
    "phantom": _MADE_UP | {"span", "photons", "hot_pixels", "stripes", "stripe_amplitude", "center_offset"},
}
"""The options that each source heeds."""


def _open(settings: DaqSettings, chosen: SourceName) -> AbstractContextManager[Source]:
    if chosen == "hdf5":
        rows = slice(settings.first_row, settings.first_row + settings.rows if settings.rows else None)
        return open_scan(settings.file or "", exchange=settings.exchange, rows=rows)
    try:
        return nullcontext(_make_up(settings, chosen))
    except ValueError as error:
        raise UserError(str(error)) from error


def _make_up(settings: DaqSettings, chosen: SourceName) -> Source:
    size: dict[str, Any] = {
        name: value for name in ("rows", "columns", "projections") if (value := getattr(settings, name))
    }
    if chosen == "random":
        return RandomSource(**size, seed=settings.seed, flats=settings.flats, darks=settings.darks)
    return PhantomSource(
        **size,
        span=math.radians(settings.span),
        seed=settings.seed,
        photons=settings.photons,
        flats=settings.flats,
        darks=settings.darks,
        hot_pixels=settings.hot_pixels,
        stripes=settings.stripes,
        stripe_amplitude=settings.stripe_amplitude,
        center_offset=settings.center_offset,
    )


def open_sender(settings: DaqSettings, stop: StopFlag) -> PushSender | Publisher:
    """Listen on the link that `settings` choose."""
    timeout = settings.timeout or None
    if not settings.uses_pubsub():
        return PushSender(settings.bind, stop=stop, timeout=timeout)
    return Publisher(
        settings.publisher_addr,
        high_water_mark=settings.publisher_hwm,
        synch_endpoint=settings.synch_addr or None,
        synch_count=settings.synch_count,
        stop=stop,
        timeout=timeout,
    )


def make_scan_name() -> str:
    """Return an identity for a scan that begins now."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


def send_scan(stream: Iterable[Frame], sender: FrameSender, pacer: Pacer, log: Logger, *, total: int) -> None:
    """Send each frame of `stream` when it is due, stamped with that time, and then the end of the scan.

    Logs `progress` (at most twice a second) and `scan ended` with the frames and projections sent, the
    seconds since the first frame and the frames per second.
    """
    pulse, began = Pulse(), time.monotonic()
    sent = projections = 0

    def report() -> dict[str, Any]:
        seconds = time.monotonic() - began
        return {
            "sent": sent,
            "total": total,
            "projections": projections,
            "seconds": round(seconds, 3),
            "rate": round(sent / max(seconds, 1e-9), 1),
        }

    for frame in stream:
        pacer.wait(frame)
        sender.send(replace(frame, timestamp_ns=time.time_ns()))
        sent += 1
        projections += frame.kind is FrameKind.PROJECTION
        if pulse.due():
            log.info("progress", **report())
    log.info("scan ended", **report())  # while it can still travel with the frames
    sender.end()
