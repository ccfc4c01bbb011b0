"""`ministream dist`: receive frames, correct them, share their rows out among the workers."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from aps_mini_apps.compiling import use_threads
from aps_mini_apps.compiling import Ahead
from aps_mini_apps.dist.correction import Correction, warm_up
from aps_mini_apps.dist.distributor import Distributor
from aps_mini_apps.dist.outputs import Outputs, PushOutputs, TmqOutputs
from aps_mini_apps.dist.settings import DistSettings
from aps_mini_apps.frames import Frame, RowRange
from aps_mini_apps.geometry import partition_rows
from aps_mini_apps.links import FrameReceiver, FrameSender
from aps_mini_apps.links.pubsub import Subscriber, VolumePublisher
from aps_mini_apps.links.push import PullReceiver
from aps_mini_apps.wire import WireError
from aps_mini_apps.wire.note import Note
from ministream.base.errors import UserError
from ministream.base.lifecycle import StopFlag
from ministream.base.log import get_logger, heard_by
from ministream.base.pulse import Pulse

if TYPE_CHECKING:
    from aps_mini_apps.dist.stripes import StripeFilter


def main(settings: DistSettings) -> int:
    """Run until the scan has ended and every worker has been told so."""
    stop = StopFlag().install()
    # Beside the waiting for workers and flats: the first start compiles for some seconds, later ones load.
    compiler = Ahead()
    compiler.begin(warm_up)
    with ExitStack() as stack:
        outputs = stack.enter_context(_open_outputs(settings, stop))
        publisher = None
        if settings.my_publisher_addr:
            publisher = stack.enter_context(VolumePublisher(settings.my_publisher_addr))
        get_logger().info("listening", endpoint=",".join(outputs.endpoints))
        stack.enter_context(heard_by(outputs.tell))
        _warn(settings)
        workers = outputs.workers()
        receiver = stack.enter_context(_open_receiver(settings, workers, outputs, stop))
        get_logger().info("waiting for frames", source=settings.data_source_addr or settings.source, workers=workers)
        try:
            if settings.skip_serialize:
                _count(receiver, outputs if settings.my_distributor_addr else None)
            else:
                compiler.wait(stop.raise_if_set)
                _Session(settings, receiver, outputs, publisher).run()
        except ValueError as error:  # the mathematics says what is wrong with the frames
            raise UserError(str(error)) from error
    return 0


def _warn(settings: DistSettings) -> None:
    log = get_logger()
    if not settings.mlog:
        log.warning("--no-mlog: transmission is passed on, not line integrals")
    if not settings.degree_to_radian:
        log.warning("--no-degree-to-radian: workers read degrees as radians")
    if not settings.normalize:
        log.warning("--no-normalize: frames are taken for transmission, flats and darks are not used")
    if not settings.remove_invalids:
        log.warning("--no-remove-invalids: pixels without a measurement are passed on as they are")


def _open_outputs(settings: DistSettings, stop: StopFlag) -> Outputs:
    timeout = settings.timeout or None
    if settings.my_distributor_addr:
        return TmqOutputs(settings.my_distributor_addr, settings.workers, stop=stop, timeout=timeout)
    return PushOutputs(settings.bind, settings.workers, stop=stop, timeout=timeout)


def _open_receiver(settings: DistSettings, workers: int, outputs: Outputs, stop: StopFlag) -> FrameReceiver:
    timeout = settings.timeout or None
    if not settings.data_source_addr:
        return PullReceiver(
            settings.source, peer="the acquisition", on_note=_pass_on(outputs), stop=stop, timeout=timeout
        )
    return Subscriber(
        settings.data_source_addr,
        high_water_mark=settings.data_source_hwm,
        synch_endpoint=settings.data_source_synch_addr or None,
        synch_count=workers,
        pixel_type=_declared_pixels(settings),
        check_sequence=settings.check_seq,
        stop=stop,
        timeout=timeout,
    )


def _pass_on(outputs: Outputs) -> Callable[[Note], None]:
    """Return what hands the acquisition's notes on to the workers, and refuses those in any other name."""

    def hear(note: Note) -> None:
        if note.service != "daq":
            raise WireError(f"a note in the name of {note.service} came from the acquisition")
        outputs.tell(note.as_event())

    return hear


def _declared_pixels(settings: DistSettings) -> str | None:
    chosen = [t for t in ("uint8", "uint16") if getattr(settings, f"{t}_to_float32")]
    chosen += ["float32"] if settings.cast_to_float32 else []
    if len(chosen) > 1:
        raise UserError(f"pixels cannot be {' and '.join(chosen)} at once: give one of these options")
    return chosen[0] if chosen else None


def _stripe_filter(settings: DistSettings) -> "StripeFilter | None":
    if not settings.remove_stripes:
        return None
    from aps_mini_apps.dist.stripes import StripeFilter  # loads Numba

    return StripeFilter(warm_up=settings.stripe_warm_up)


def _count(receiver: FrameReceiver, waiting: Outputs | None) -> None:
    """Receive and count, to see how fast the link is; tell workers that wait that there is nothing for them."""
    began, frames, size, shape = time.monotonic(), 0, 0, (1, 1)
    while (frame := receiver.receive()) is not None:
        frames, size, shape = frames + 1, size + frame.pixels.nbytes, frame.pixels.shape
    seconds = time.monotonic() - began
    for sender in waiting.start(*shape) if waiting else ():
        sender.end()
    get_logger().info("scan ended", received=frames, bytes=size, seconds=round(seconds, 3), rate=frames / seconds)


class _Session:
    """One scan through the distributor."""

    def __init__(
        self,
        settings: DistSettings,
        receiver: FrameReceiver,
        outputs: Outputs,
        publisher: VolumePublisher | None,
    ) -> None:
        self.settings, self.receiver, self.outputs, self.publisher = settings, receiver, outputs, publisher
        self.log = get_logger()
        self.correction = Correction(
            normalize=settings.normalize, minus_log=settings.mlog, remove_invalids=settings.remove_invalids
        )
        self.distributor = Distributor(
            self.correction, stripes=_stripe_filter(settings), early=settings.early, hold_limit=settings.hold_limit
        )
        self.senders: Sequence[FrameSender] = []
        self.slabs: list[RowRange] = []
        self.received = self.sent = 0
        self.first: Frame | None = None

    def run(self) -> None:
        if (used := use_threads(self.settings.thread)) < self.settings.thread:
            self.log.warning("fewer threads than asked for", asked=self.settings.thread, used=used)
        began, pulse = time.monotonic(), Pulse()
        for projection in self._corrected():
            self._send(projection)
            if pulse.due():
                self._report("progress", time.monotonic() - began)
        if not self.sent:
            raise UserError("the scan ended without any projection")
        self._report("scan ended", time.monotonic() - began)  # while it can still travel with the projections
        for sender in self.senders:
            sender.end()

    def _corrected(self) -> Iterator[Frame]:
        while (frame := self.receiver.receive()) is not None:
            self.received += 1
            self.first = self.first or frame
            frame.check_continues(self.first)
            yield from self.distributor.accept(self._selected(frame))
        yield from self.distributor.finish()

    def _selected(self, frame: Frame) -> Frame:
        """Return the rows that are to be distributed; a frame that holds part of the detector's says which."""
        settings, (rows, columns) = self.settings, frame.pixels.shape
        if settings.num_columns and settings.num_columns != columns:
            raise UserError(f"frames have {columns} columns, not the {settings.num_columns} of --num-columns")
        held = frame.rows or RowRange(start=0, stop=rows, total=rows)
        first = settings.beg_sinogram or held.start
        stop = first + settings.num_sinograms if settings.num_sinograms else held.stop
        if not held.start <= first < stop <= held.stop:
            raise UserError(
                f"rows {first} to {max(first, stop - 1)} were asked for, but frames have rows {held.start} to"
                f" {held.stop - 1}: mend --beg-sinogram and --num-sinograms"
            )
        return replace(frame, pixels=frame.pixels[first - held.start : stop - held.start], rows=None)

    def _send(self, projection: Frame) -> None:
        if not self.slabs:
            self._start(projection)
        if not self.settings.degree_to_radian:
            projection = replace(projection, angle=math.degrees(projection.angle))
        # numbered anew, losses included: so a worker sees what was lost anywhere on the way
        projection = replace(projection, sequence=self.sent + self.receiver.lost, numbered=True)
        for sender, rows in zip(self.senders, self.slabs, strict=True):
            sender.send(projection.slab(rows))
        if self.publisher is not None and self.sent % self.settings.my_publisher_freq == 0:
            self.publisher.publish(projection)
        self.sent += 1

    def _start(self, first: Frame) -> None:
        rows, columns = first.pixels.shape
        self.senders = self.outputs.start(rows, columns)
        self.slabs = partition_rows(rows, len(self.senders))
        self.log.info("scan started", scan=first.scan, rows=rows, columns=columns, workers=len(self.senders))

    def _report(self, event: str, seconds: float) -> None:
        self.log.info(
            event,
            received=self.received,
            sent=self.sent,
            rate=round(self.sent / max(seconds, 1e-9), 1),
            lost=self.receiver.lost,
            refused=self.receiver.refused,
            invalid_pixels=self.correction.invalid,
            seconds=round(seconds, 2),
        )
