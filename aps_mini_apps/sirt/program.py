"""`ministream sirt`: receive a slab's projections, reconstruct, write and publish."""

import time
import uuid
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numba
import numpy as np
import numpy.typing as npt

from aps_mini_apps.compiling import Ahead, use_threads
from aps_mini_apps.frames import Frame, FrameKind, RowRange, Volume
from aps_mini_apps.geometry import LeaningAxis, check_center, partition_rows
from aps_mini_apps.links import FrameReceiver
from aps_mini_apps.links.pubsub import VolumePublisher
from aps_mini_apps.links.push import PullReceiver
from aps_mini_apps.links.tmq import TmqWorker
from aps_mini_apps.sirt.algorithms import Algorithm
from aps_mini_apps.sirt.projectors import Backend, Projector, choose_backend, load_backend, make_projector
from aps_mini_apps.sirt.projectors.memory import Task, check_memory
from aps_mini_apps.sirt.reconstruction import AxisSearch, Reconstruction, Update
from aps_mini_apps.sirt.settings import SirtSettings, leans
from aps_mini_apps.sirt.user_algorithm import choose_algorithm
from aps_mini_apps.sirt.writer import ReconstructionWriter, check_writable, write_volume
from aps_mini_apps.wire.note import Note
from ministream.base.errors import UserError
from ministream.base.lifecycle import StopFlag
from ministream.base.log import get_logger, repeat
from ministream.base.pulse import Pulse


def main(settings: SirtSettings) -> int:
    """Run until the scan has ended; the last window is always written."""
    stop = StopFlag().install()
    check_writable(Path(settings.recon_output_dir))
    if (used := use_threads(settings.thread)) < settings.thread:
        get_logger().warning("fewer threads than asked for", asked=settings.thread, used=used)
    algorithm = choose_algorithm(settings.algorithm, settings.parameter)
    try:
        load_backend(settings.backend)  # what is missing here is told before anybody waits for projections
    except ValueError as error:
        raise UserError(str(error)) from error
    with ExitStack() as stack:
        stack.enter_context(_warnings_in_log())
        publisher = stack.enter_context(VolumePublisher(settings.pub_addr)) if settings.pub_addr else None
        listener = _Listener(settings, algorithm)
        receiver = stack.enter_context(_open_receiver(settings, stop, listener))
        get_logger().info(
            "waiting for projections",
            source=_source(settings),
            timeout=settings.timeout,
            published=publisher.endpoint if publisher else None,
        )
        first = receiver.receive()
        if first is None:
            raise UserError(f"the scan from {_source(settings)} ended before any projection came")
        listener.compiler.wait(stop.raise_if_set)
        try:
            session = _Session(settings, receiver, publisher, first, algorithm)
            session.run(chain([first], iter(receiver.receive, None)))
        except ValueError as error:  # the mathematics says what is wrong with the scan or the options
            raise UserError(str(error)) from error
    return 0


@contextmanager
def _warnings_in_log() -> Iterator[None]:
    """Log what libraries and algorithms warn of, each once per line of code."""

    def show(message: object, category: type[Warning], filename: str, lineno: int, *_: object) -> None:
        get_logger().warning(str(message), kind=category.__name__, file=filename, line=lineno)

    with warnings.catch_warnings():
        warnings.showwarning = cast("Any", show)
        yield


def _open_receiver(settings: SirtSettings, stop: StopFlag, listener: "_Listener") -> FrameReceiver:
    timeout = settings.timeout or None
    if not settings.dest_host:
        hear = listener.hear if settings.notes else None
        return PullReceiver(settings.source, peer="the producer", on_note=hear, stop=stop, timeout=timeout)
    base = f"tcp://{settings.dest_host}:{settings.dest_port}"
    return TmqWorker(base, settings.rank, settings.workers, on_rows=listener.take_rows, stop=stop, timeout=timeout)


def _make_projector(
    settings: SirtSettings, algorithm: Algorithm, backend: Backend, slices: int, columns: int
) -> Projector:
    """Return the projector of a slab that fits in memory: nothing is allocated before that is known."""
    task = Task(
        columns=columns,
        window=settings.window_length,
        held=algorithm.held(settings.window_length),
        backend=backend,
        half=settings.half,
        copies=2 if settings.pub_addr else 1,  # what is published is put into a message
        history=settings.history if settings.center == "auto" else 0,
        axis_per_slice=leans(settings.center),
    )
    check_memory(slices, task)
    return make_projector(
        backend,
        slices,
        columns,
        model=settings.model,
        norm=settings.norm,
        circle=settings.circle,
        axis_per_slice=leans(settings.center),
        half=settings.half,
    )


class _Listener:
    """Hears what the producer's programs say of the scan before its first projection."""

    def __init__(self, settings: SirtSettings, algorithm: Algorithm) -> None:
        self._settings, self._algorithm = settings, algorithm
        self.compiler = Ahead()

    def hear(self, note: Note) -> None:
        """Log what they have logged, in their name and with their time; `via` tells it from our own."""
        repeat(note.as_event() | {"via": "sirt"})
        rows, columns = note.fields.get("rows"), note.fields.get("columns")
        if (note.service, note.event) == ("daq", "scan started") and isinstance(rows, int) and isinstance(columns, int):
            with suppress(ValueError, IndexError):  # no such worker: said by who deals the rows out
                self.take_rows(partition_rows(rows, self._settings.workers)[self._settings.rank], columns)

    def take_rows(self, rows: RowRange, columns: int) -> None:
        """Begin to compile for a slab while flats and darks arrive: the first window then waits for no compiler."""
        self.compiler.begin(lambda: self._compile(rows.count, columns))

    def _compile(self, slices: int, columns: int) -> None:
        with suppress(ValueError):  # what cannot be is said when the first projection is there
            backend = choose_backend(self._settings.backend)
            _make_projector(self._settings, self._algorithm, backend, slices, columns).warm_up()


def _source(settings: SirtSettings) -> str:
    if settings.dest_host:
        return f"tcp://{settings.dest_host}:{settings.dest_port + settings.rank}"
    return settings.source


@dataclass
class _Monitor:
    """What is remembered of a run for its report: one value per window, one row per projection."""

    window: list[int] = field(default_factory=list)
    change: list[float] = field(default_factory=list)
    misfit: list[float] = field(default_factory=list)
    center: list[float] = field(default_factory=list)
    angles: list[float] = field(default_factory=list)
    sinogram: list[np.ndarray] = field(default_factory=list)

    def watch(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """Pass `frames` on, keeping each one's angle and a copy of its middle row."""
        for frame in frames:
            self.angles.append(frame.angle)
            self.sinogram.append(np.array(frame.pixels[frame.pixels.shape[0] // 2]))
            yield frame

    def add(self, update: Update) -> None:
        for name in ("window", "change", "misfit", "center"):
            getattr(self, name).append(getattr(update, name))


class _Session:
    """One scan: its reconstruction, and what leaves it (files, published volumes, log lines)."""

    def __init__(
        self,
        settings: SirtSettings,
        receiver: FrameReceiver,
        publisher: VolumePublisher | None,
        first: Frame,
        algorithm: Algorithm,
    ) -> None:
        self.settings, self.receiver, self.publisher = settings, receiver, publisher
        self.log = get_logger()
        slices, columns = first.pixels.shape
        self.rows = first.rows or RowRange(start=0, stop=slices, total=slices)
        self.scan = first.scan or settings.scan or f"{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:6]}"
        if self.rows.count < self.rows.total and not (first.scan or settings.scan):
            raise UserError("this link does not say which scan it carries: give all its workers the same --scan")
        folder = Path(settings.recon_output_dir)
        self.writer = ReconstructionWriter(folder, self.scan, dataset=settings.recon_dataset_path)
        self.monitor = _Monitor()
        self.algorithm = algorithm
        self.backend = choose_backend(settings.backend)
        center = _choose_center(settings, self.rows, columns)
        self.reconstruction = _make_reconstruction(settings, self._projector(slices, columns), algorithm, center)
        self.first, self.invalid = first, 0
        self.last: Update | None = None

    def _projector(self, slices: int, columns: int) -> Projector:
        settings = self.settings
        began = time.monotonic()
        projector = _make_projector(settings, self.algorithm, self.backend, slices, columns)
        projector.warm_up()
        self.log.info(
            "projector ready",
            backend=self.backend,
            slices=slices,
            columns=columns,
            threads=numba.get_num_threads(),
            seconds=round(time.monotonic() - began, 2),
        )
        return projector

    def run(self, frames: Iterable[Frame]) -> None:
        """Reconstruct `frames`; whatever ends the run, the last window is written."""
        began, pulse, ended = time.monotonic(), Pulse(), "the run was cut off"
        try:
            for update in self.reconstruction.run(self.monitor.watch(map(self._checked, frames))):
                self._take(update)
                if pulse.due():
                    self._report("progress", time.monotonic() - began)
            ended = "complete"
            if self.reconstruction.searching:
                self.log.warning("no pair of projections 180 degrees apart: the rotation axis was not found")
        except Exception as error:
            ended = str(error)
            raise
        finally:
            self._finish(ended)
        self._report("scan ended", time.monotonic() - began)

    def _checked(self, frame: Frame) -> Frame:
        """Return `frame` if the volume can take it; what is no number would spread over all of the volume."""
        if frame.kind is not FrameKind.PROJECTION:
            raise ValueError(
                f"a {frame.kind.name.lower()} came where corrected projections are due: connect the worker to the"
                " distributor, not to the acquisition"
            )
        frame.check_continues(self.first)
        bad = ~np.isfinite(frame.pixels)
        if not bad.any():
            return frame
        if not self.invalid:
            self.log.warning("pixels that are no numbers are taken for 0, as air", projection=frame.number)
        self.invalid += int(bad.sum())
        return replace(frame, pixels=np.where(bad, np.float32(0.0), frame.pixels))

    def _take(self, update: Update) -> None:
        self.last = update
        self.monitor.add(update)
        if update.window % self.settings.write_freq == 0:
            self._write(update, "in progress")
        if self.publisher is not None and update.window % self.settings.pub_freq == 0:
            self._publish(update)

    def _finish(self, ended: str) -> None:
        if self.last is None:
            return
        self._write(self.last, ended)
        if self.publisher is not None and self.last.window % self.settings.pub_freq:
            self._publish(self.last)
        if path := self.settings.recon_output_path:
            volume = self.reconstruction.volume()
            write_volume(Path(path), self.settings.recon_dataset_path, volume, self._attributes(ended), {})

    def _publish(self, update: Update) -> None:
        volume = self.reconstruction.volume()
        message = Volume(data=volume, window=update.window, center=update.center, scan=self.scan, rows=self.rows)
        if self.publisher is not None:
            self.publisher.publish(message)

    def _write(self, update: Update, ended: str) -> None:
        monitor = {name: np.array(values) for name, values in vars(self.monitor).items()}
        volume = self.reconstruction.volume()
        path = self.writer.write(update.window, volume, self.rows, self._attributes(ended), monitor)
        self.log.info("file written", path=str(path), window=update.window, state=ended)

    def _attributes(self, ended: str) -> dict[str, str | int | float]:
        settings, last = self.settings, self.last
        return {
            "state": ended,
            "angles_seen": len(self.reconstruction.seen),
            "center": settings.center if leans(settings.center) else last.center if last else 0.0,
            "change": last.change if last else 0.0,
            "misfit": last.misfit if last else 0.0,
            **self.algorithm.about(),
            "backend": self.backend,
            "model": settings.model,
            "norm": settings.norm,
            "window_length": settings.window_length,
            "window_step": settings.window_step,
            "window_iter": settings.window_iter,
            "frames_lost": self.receiver.lost,
            "frames_refused": self.receiver.refused,
            "invalid_pixels": self.invalid,
            "software": f"mini-stream {version('mini-stream')}",
        }

    def _report(self, event: str, seconds: float) -> None:
        if self.last is None:
            return
        received = len(self.reconstruction.seen)
        self.log.info(
            event,
            received=received,
            windows=self.last.window + 1,
            rate=round(received / max(seconds, 1e-9), 1),
            change=self.last.change,
            misfit=self.last.misfit,
            center=self.last.center,
            lost=self.receiver.lost,
            invalid_pixels=self.invalid,
            seconds=round(seconds, 2),
        )


def _choose_center(settings: SirtSettings, rows: RowRange, columns: int) -> float | npt.NDArray[np.float64] | None:
    """Return the axis that is given, for each of `rows` if it leans; None where it is to be found or told.

    Raises
    ------
    ValueError
        If it lies outside the detector.
    """
    if settings.center in ("auto", 0.0):
        return None
    if isinstance(settings.center, float):
        return check_center(settings.center, columns)
    axis = LeaningAxis.parse(settings.center)
    axis.check(columns)
    return axis.centers(rows)


def _make_reconstruction(
    settings: SirtSettings, projector: Projector, algorithm: Algorithm, center: float | npt.NDArray[np.float64] | None
) -> Reconstruction:
    def announce(center: float, projections: int) -> None:
        get_logger().warning("rotation axis found: starting again", center=center, projections=projections)

    automatic = settings.center == "auto"
    return Reconstruction(
        projector,
        length=settings.window_length,
        step=settings.window_step,
        iterations=settings.window_iter,
        center=center,
        search=AxisSearch(settings.history, announce) if automatic else None,
        algorithm=algorithm,
    )
