"""`ministream run`: a scan through daq, dist and sirt as separate processes, and a report of what came out.

Each program binds a free port and says so in its log (`listening`); the next one is then started with that
address. The run follows their progress in the same logs. It ends when all have ended or, with the reason, as
soon as one of them fails.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console

from aps_mini_apps import batch
from aps_mini_apps.daq.phantom import PhantomSource
from aps_mini_apps.daq.program import make_scan_name, open_source
from aps_mini_apps.daq.settings import DaqSettings
from aps_mini_apps.daq.sources import Source
from aps_mini_apps.dist import correction
from aps_mini_apps.dist.settings import DistSettings
from aps_mini_apps.geometry import LeaningAxis, check_center, partition_rows
from aps_mini_apps.links.push import QUEUE_FRAMES
from aps_mini_apps.report.live import Display
from aps_mini_apps.report.story import Story, summary_lines
from aps_mini_apps.sirt.projectors import make_projector
from aps_mini_apps.sirt.settings import SirtSettings, leans
from aps_mini_apps.sirt.user_algorithm import choose_algorithm
from aps_mini_apps.sirt.writer import check_writable
from ministream.base.children import Child, Children, command_line
from ministream.base.errors import UserError
from ministream.base.lifecycle import StopFlag, Stopped
from ministream.base.log import get_logger
from ministream.base.settings import Settings
from ministream.commands.settings import RunSettings

if TYPE_CHECKING:
    from ministream.commands.tunnel import LocalTunnel

SILENT = 60.0
"""Seconds within which a program that was started must say that it listens."""

ANY_PORT = "tcp://127.0.0.1:*"

DEMONSTRATION_RATE = 40.0
"""Projections per second of the phantom's scan: quick, yet slow enough to be watched."""

S = TypeVar("S", bound=Settings)


def main(settings: RunSettings) -> int:
    """Run the whole pipeline; 0 when the scan is complete and its files are written."""
    output = Path(settings.output)
    plan = Plan(settings)
    if settings.tunnel:
        from ministream.commands.tunnel import check_proxy  # loads gRPC

        check_proxy(settings.proxy)
    check_writable(output)
    with open_source(plan.daq) as source:
        plan.check(source)
        interrupted = _heed_interrupts()
        plan.find_axis(source)
        interrupted()
        plan.prepare_kernels(source)
        interrupted()
        story = Story(scan=plan.scan, source=source.name, settings=settings.model_dump(mode="json"))
        story.dataset = plan.sirt.recon_dataset_path
        console = Console()
        stop = StopFlag().install()  # until here nothing runs that must be ended in order: Ctrl-C interrupts
        stopped = _run_programs(plan, story, stop, Display(console, style=settings.log_format, service="run"))
        story.truth = source.truth() if isinstance(source, PhantomSource) else None
    from aps_mini_apps.report.page import write_report  # loads matplotlib, when the scan is over

    try:
        report = write_report(output, story)
    except UserError:
        if stopped:  # before there was anything to report
            raise stopped from None
        raise
    for line in summary_lines(report.verdict, report.headline, f"Look at {report.page} and {report.preview}."):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if stopped:
        raise stopped
    return 0


def _heed_interrupts() -> Callable[[], None]:
    """Return what raises KeyboardInterrupt if Ctrl-C has come: while the compiler works it would be lost."""
    came: list[int] = []

    def interrupt(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        raise KeyboardInterrupt

    def check() -> None:
        if came:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    return check


def _run_programs(plan: "Plan", story: Story, stop: StopFlag, display: Display) -> Stopped | None:
    """Run all programs to their end, and enter it into `story`; return what stopped them early, if anything."""
    began, stopped = time.monotonic(), None
    with display, Children(stop, display.show) as children:
        try:
            story.tunnel = _Pipeline(plan, children, display).run()
        except Stopped as reason:
            stopped = reason
            children.end()
        story.seconds = time.monotonic() - began
        story.services = {child.name: child.events.get("scan ended", {}) for child in children.all}
    return stopped


class Plan:
    """What each program of the run is told; made, and checked, before the first one starts.

    What the user gave for the run, and what joins the programs, goes to them as their command line. The run's own
    defaults go with it only where neither the settings file nor the environment says otherwise for that program.
    """

    def __init__(self, settings: RunSettings) -> None:
        self.settings = settings
        self.scan = make_scan_name()
        self.workers = settings.workers or self._load("dist", DistSettings, {}).workers
        self.center: float | str | None = settings.center
        if self.center is None and "center" not in self._load("sirt", SirtSettings, {}).model_fields_set:
            self.center = "auto"
        self.daq = self._load("daq", DaqSettings, self.for_daq())
        self._load("dist", DistSettings, self.for_dist({"endpoint": ANY_PORT, "synch": ANY_PORT}))
        self.sirt = self._load("sirt", SirtSettings, self.for_sirt(0, ANY_PORT))
        choose_algorithm(self.sirt.algorithm, self.sirt.parameter)

    def check(self, source: Source) -> None:
        """Raise UserError for what does not fit the scan: too many workers, an axis outside the detector."""
        try:
            partition_rows(source.rows, self.workers)
            if isinstance(self.center, float) and self.center:
                check_center(self.center, source.columns)
            elif leans(self.center):
                LeaningAxis.parse(str(self.center)).check(source.columns)
        except ValueError as error:
            raise UserError(str(error)) from error

    def find_axis(self, source: Source) -> None:
        """Replace `--center auto` by the axis found in the source, if two of its projections face each other.

        Where no two do, the middle of the detector is taken, with a warning.
        """
        if self.center != "auto":
            return
        log, began = get_logger(), time.monotonic()
        with open_source(self._axis_band(source)) as band:
            try:
                found = batch.find_center(band)
            except ValueError as error:  # the mathematics says what is wrong with the frames
                raise UserError(f"{source.name}: {error}") from error
        if found is None:
            log.warning("no pair of projections 180 degrees apart: the middle is taken for the rotation axis")
            self.center = source.columns / 2
            return
        self.center = round(found, 3)
        log.info("rotation axis found", center=self.center, seconds=round(time.monotonic() - began, 2))

    def prepare_kernels(self, source: Source) -> None:
        """Have the kernels compiled before the scan begins: the workers then load them from Numba's cache."""
        began, sirt = time.monotonic(), self.sirt
        slices = -(-source.rows // self.workers)
        correction.warm_up()
        try:
            make_projector(
                sirt.backend,
                slices,
                source.columns,
                model=sirt.model,
                norm=sirt.norm,
                circle=sirt.circle,
                axis_per_slice=leans(sirt.center if self.center is None else self.center),
                half=sirt.half,
            ).warm_up()
        except ValueError as error:  # it cannot run here, or not a slab of this size
            raise UserError(str(error)) from error
        get_logger().info("kernels ready", backend=sirt.backend, seconds=round(time.monotonic() - began, 2))

    def _axis_band(self, source: Source) -> DaqSettings:
        """Return settings for the rows of the source around its middle; a phantom is taken whole."""
        if self.daq.chosen_source() != "hdf5":
            return self.daq
        rows = min(source.rows, batch.AXIS_ROWS)
        first = self.daq.first_row + (source.rows - rows) // 2
        return self.daq.model_copy(update={"first_row": first, "rows": rows})

    def for_daq(self) -> dict[str, Any]:
        """Return the options of the acquisition."""
        settings = self.settings
        given: dict[str, Any] = {
            "source": "hdf5" if settings.file else None,
            "file": settings.file or None,
            "scan": self.scan,
            "exchange": settings.exchange,
            "first_row": settings.first_row,
            "rows": settings.rows,
            "columns": settings.columns,
            "projections": settings.projections,
            "frame_rate": settings.frame_rate,
            "center": self.center or None if isinstance(self.center, float) else None,
            "timeout": settings.timeout,
        }
        if settings.links == "aps":
            given |= {"publisher_addr": ANY_PORT, "synch_addr": ANY_PORT, "synch_count": self.workers}
            given |= {"publisher_hwm": QUEUE_FRAMES}
        else:
            given |= {"bind": ANY_PORT}
        rate = 0.0 if self._load("daq", DaqSettings, given).chosen_source() == "hdf5" else DEMONSTRATION_RATE
        return self._with_defaults("daq", DaqSettings, given, {"frame_rate": rate})

    def for_dist(self, daq: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options of the distributor; `daq` is the acquisition's event `listening`."""
        settings = self.settings
        given: dict[str, Any] = {
            "workers": self.workers,
            "remove_stripes": settings.remove_stripes,
            "timeout": settings.timeout,
        }
        if settings.links == "aps":
            given |= {"data_source_addr": daq["endpoint"], "data_source_synch_addr": daq["synch"]}
            given |= {"data_source_hwm": QUEUE_FRAMES, "my_distributor_addr": ANY_PORT}
        else:
            given |= {"source": daq["endpoint"], "bind": ANY_PORT}
        phantom = self.daq.chosen_source() == "phantom"
        return self._with_defaults("dist", DistSettings, given, {"remove_stripes": phantom})

    def for_sirt(self, rank: int, endpoint: str) -> dict[str, Any]:
        """Return the options of worker `rank`; `endpoint` is where the distributor listens for it."""
        settings = self.settings
        given: dict[str, Any] = {
            "center": self.center,
            "algorithm": settings.algorithm,
            "parameter": settings.parameter,
            "window_length": settings.window_length,
            "window_step": settings.window_step,
            "window_iter": settings.window_iter,
            "write_freq": settings.write_freq,
            "backend": settings.backend,
            "thread": settings.thread,
            "recon_output_dir": settings.output,
            "scan": self.scan,
            "rank": rank,
            "workers": self.workers,
            "timeout": settings.timeout,
            "notes": False,  # the run reads the logs of all programs itself
        }
        if settings.links == "push":
            given |= {"source": endpoint}
        else:
            host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
            given |= {"dest_host": host, "dest_port": port if port.isdigit() else None}
        share = max(1, (os.cpu_count() or 1) // self.workers)
        return self._with_defaults("sirt", SirtSettings, given, {"thread": share, "pub_addr": ""})

    def _with_defaults(
        self, section: str, model: type[S], given: Mapping[str, Any], defaults: Mapping[str, Any]
    ) -> dict[str, Any]:
        chosen = {name: value for name, value in given.items() if value is not None}
        spoken = self._load(section, model, {}).model_fields_set
        return {name: value for name, value in defaults.items() if name not in spoken} | chosen

    def targets(self, endpoints: Sequence[str]) -> list[str]:
        """Return where a tunnel must lead, `host:port` per worker; `endpoints` are the distributor's."""
        addresses = [endpoint.removeprefix("tcp://") for endpoint in endpoints]
        if self.settings.links == "push":
            return addresses
        host, _, base = addresses[0].rpartition(":")
        return [f"{host}:{int(base) + rank}" for rank in range(self.workers)]

    def arguments(self, options: Mapping[str, Any]) -> list[str]:
        """Return `options` as a command line."""
        return command_line(options, self.settings.config_file)

    def _load(self, section: str, model: type[S], options: Mapping[str, Any]) -> S:
        """Load a program's settings as it will itself, so that a mistake shows before anything runs."""
        given = {name: value for name, value in options.items() if value is not None}
        return model.load(section, config=self.settings.config_file, environment=os.environ, overrides=given)


class _Pipeline:
    """The programs of one run, from the start of the first to the end of the last."""

    def __init__(self, plan: Plan, children: Children, display: Display) -> None:
        self.plan, self.children, self.display = plan, children, display
        self.following = self._follow()

    def run(self) -> Mapping[str, Any]:
        """Start the programs one after the other and follow them until all have ended.

        Returns the tunnel's figures; none without a tunnel.
        """
        with ExitStack() as stack:
            tunnel = self._start_tunnel(stack)
            self._start_programs(tunnel)
            for _event in self.following:
                pass
            return tunnel.figures() if tunnel else {}

    def _start_tunnel(self, stack: ExitStack) -> "LocalTunnel | None":
        if not self.plan.settings.tunnel:
            return None
        from ministream.commands.tunnel import LocalTunnel  # loads gRPC

        return stack.enter_context(LocalTunnel(self.children, self.plan.settings.proxy))

    def _start_programs(self, tunnel: "LocalTunnel | None") -> None:
        plan, children = self.plan, self.children
        daq = children.start("daq", "ministream", ["daq", *plan.arguments(plan.for_daq())])
        heard = self._await(daq, "listening")
        dist = children.start("dist", "ministream", ["dist", *plan.arguments(plan.for_dist(heard))])
        endpoints = str(self._await(dist, "listening")["endpoint"]).split(",")
        if tunnel:
            listeners = tunnel.open(plan.targets(endpoints), lambda server: self._await(server, "serving"))
            endpoints = [f"tcp://{listener}" for listener in listeners]
        for rank in range(plan.workers):
            name = "sirt" if plan.workers == 1 else f"sirt{rank}"
            # on the old links all of them are given the base, from which they count themselves
            endpoint = endpoints[rank] if plan.settings.links == "push" else endpoints[0]
            children.start(name, "ministream", ["sirt", *plan.arguments(plan.for_sirt(rank, endpoint))])

    def _await(self, child: Child, event: str) -> Mapping[str, Any]:
        """Follow the programs until `child` has logged `event`, and return that event."""
        deadline = time.monotonic() + SILENT
        while event not in child.events:
            if next(self.following, self) is self:
                raise UserError(f"{child.name} ended before it was {event}: see its log above")
            if time.monotonic() > deadline:
                raise UserError(f"{child.name} was not {event} within {SILENT:g} s: see its log above")
        return child.events[event]

    def _follow(self) -> Iterator[None]:
        """Show events as they come; raise UserError as soon as a program has failed."""
        for heard in self.children.follow():
            if not heard:
                self.display.refresh()
            yield
