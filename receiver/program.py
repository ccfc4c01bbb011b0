"""The service's life: it makes its access files, then serves, and carries out one run after the other."""

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from aps_mini_apps.report.live import Display
from aps_mini_apps.report.progress import new_event
from aps_mini_apps.report.story import Story
from aps_mini_apps.sirt.writer import check_writable, scan_of
from ministream.base import log
from ministream.base.children import Children, command_line
from ministream.base.errors import UserError
from ministream.base.lifecycle import SLICE, StopFlag, Stopped
from receiver.access import Access, prepare
from receiver.api import make_api
from receiver.crew import make_crew
from receiver.desk import ENDED, Desk, Run, State
from receiver.orders import reconstruction
from receiver.roster import Roster
from receiver.serving import Serving
from receiver.settings import ReceiverSettings
from receiver.uploads import Uploads, last_files

SERVICE = "receiver"


def main(settings: ReceiverSettings) -> int:
    """Serve until a signal says otherwise; 1 if that cut a run off."""
    stop, say = StopFlag().install(), log.get_logger()
    check_writable(Path(settings.output))
    access = Access(Path(settings.access))
    key = prepare(access, settings.key_folder)
    desk, roster = Desk(settings.history, stop), Roster(settings.vanished)
    uploads = Uploads(settings.upload, settings.upload_token_file, settings.config_file)
    api = make_api(settings, desk, roster, access.token())
    files = (
        {"certificate": None, "key": None} if settings.plaintext else {"certificate": access.certificate, "key": key}
    )
    if settings.plaintext:
        say.warning("plain HTTP (--plaintext): whoever can listen on the way reads the token")
    with Serving(api, settings.bind, settings.port, **files) as serving, Children(stop, log.repeat) as kernels:
        say.info(
            "serving",
            address=f"{settings.bind}:{serving.port}",
            tls=not settings.plaintext,
            access=settings.access,
            output=settings.output,
            remote_workers=settings.remote_workers,
        )
        if settings.slices and not settings.remote_workers:
            kernels.start("kernels", "receiver.kernels", command_line({"slices": settings.slices}))
        with uploads:
            service = _Service(settings, desk, roster, uploads)
            cut_off = service.work(stop, serving, kernels)
    say.info("ended", reason=_reason(stop))
    return 1 if cut_off else 0


def _reason(stop: StopFlag) -> str:
    try:
        stop.raise_if_set()
    except Stopped as reason:
        return str(reason)
    return ""


class _Service:
    """What the main thread does: runs, one after the other."""

    def __init__(self, settings: ReceiverSettings, desk: Desk, roster: Roster, uploads: Uploads) -> None:
        self._settings, self._desk, self._roster, self._uploads = settings, desk, roster, uploads

    def work(self, stop: StopFlag, serving: Serving, kernels: Children) -> bool:
        """Carry out runs until a stop is asked for; return whether one was cut off."""
        cut_off = False
        preparing = kernels.events()
        while not stop:
            if serving.failed:
                raise RuntimeError("the HTTP server has ended by itself")
            if (run := self._desk.take(SLICE)) is not None:
                self._carry_out(run)
                cut_off = bool(stop) and run.state is State.FAILED
            elif kernels.all:
                with suppress(Stopped):
                    next(preparing, None)
        if (run := self._desk.close(_reason(stop))) is not None:
            self._end(run, State.FAILED, "the receiver was stopped before the run began")
            cut_off = True
        return cut_off

    def _carry_out(self, run: Run) -> None:
        settings, began = self._settings, time.monotonic()
        display = Display(Console(), style=settings.log_format, service=SERVICE)

        def hear(event: dict[str, Any]) -> None:
            run.record(event)
            display.show(event)

        hear(new_event(SERVICE, "run started", run=run.id, listeners=", ".join(run.order.listeners)))
        state, reason = State.FAILED, ""
        try:
            with display, make_crew(run, settings, self._roster, hear) as crew:
                for heard in crew.follow():
                    if not heard:
                        display.refresh()
            state = State.COMPLETE
        except UserError as error:
            reason = str(error)
        except Stopped as error:
            reason = f"stopped: {error}"
        except Exception as error:  # the service stays for the next run
            log.get_logger().exception("internal fault: please report this")
            reason = f"internal fault of the receiver: {error!r}"
        report = self._report(run, time.monotonic() - began, hear)
        self._end(run, state, reason, report=report)
        if state is State.COMPLETE and (files := last_files(Path(settings.output), run.progress.files)):
            self._uploads.send(files, scan_of(files[0]))

    def _end(self, run: Run, state: State, reason: str, *, report: str | None = None) -> None:
        progress = run.progress
        self._desk.ended[state] += 1
        final = new_event(
            SERVICE,
            ENDED,
            "info" if state is State.COMPLETE else "error",
            state=state.value,
            reason=reason,
            scan=progress.scan,
            reconstructed=progress.figures()["reconstructed"],
            lost=progress.lost,
            files=len(progress.files),
            last=progress.files[-1] if progress.files else None,
            report=report,
        )
        Display(Console(), style=self._settings.log_format, service=SERVICE).show(final)
        run.end(final)

    def _report(self, run: Run, seconds: float, hear: Any) -> str | None:
        """Write the report, if anything has been reconstructed and nobody is in haste; return its file."""
        progress = run.progress
        if not (self._settings.report and progress.files) or run.stop:
            return None
        from aps_mini_apps.report.page import write_report  # loads matplotlib, when the scan is over

        story = Story(
            scan=scan_of(Path(progress.files[-1])),
            source=progress.source or "scan",
            settings={"listeners": ", ".join(run.order.listeners), **run.order.options},
            seconds=seconds,
            services=dict(progress.ended),
            tunnel=run.order.tunnel,
            dataset=reconstruction(run.order, self._settings).recon_dataset_path,
        )
        try:
            return str(write_report(Path(self._settings.output), story).page)
        except (UserError, OSError) as error:
            hear(new_event(SERVICE, "no report", "warning", reason=str(error)))
            return None
