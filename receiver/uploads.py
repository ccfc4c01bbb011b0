"""Sends finished reconstructions to an archive, in the background: by `delivery upload`, a program of its own.

It needs what `delivery` needs, and knows how to go on; the receiver only starts it, file after file, repeats what it
logs, and tells how it ended. What is not sent when the receiver ends is logged with the command that sends it.
"""

import importlib
import shlex
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from pathlib import Path

from aps_mini_apps.sirt.writer import EARLIER, scan_of
from ministream.base import log
from ministream.base.children import Children, command_line
from ministream.base.errors import UserError
from ministream.base.lifecycle import StopFlag, Stopped
from ministream.base.owner import Owner

GRACE = 10.0
"""Seconds that uploads have to end once the receiver does."""


def last_files(output: Path, written: Sequence[str]) -> list[Path]:
    """Return the files of the last window: the whole volume, and the slabs that it may consist of.

    Workers elsewhere have `written` them to this folder under whatever name it has there.
    """
    window = Path(written[-1]).name.partition("-")[0] if written else "none"
    return sorted(output.glob(f"{window}-recon*.h5"))


class Uploads(Owner):
    """Uploads to one archive; leaving the context ends them.

    Parameters
    ----------
    url
        Of the archive (`delivery intake`); empty: nothing is sent.
    token_file
        File with the token for it.
    config
        Settings file, of which `delivery upload` reads its section.

    Raises
    ------
    UserError
        If `delivery upload` can't work here.
    """

    def __init__(self, url: str, token_file: str, config: Path | None = None) -> None:
        self._is_on, self._config = bool(url), config
        self._options = {"to": url, **({"token_file": token_file} if token_file else {})}
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="upload")
        self._stop = StopFlag()
        self._last: Future[None] | None = None
        if self._is_on:
            _check_installed()

    def close(self) -> None:
        """Let end what soon does, and tell what is not sent."""
        if self._last:
            wait([self._last], GRACE)
        self._stop.request("the receiver has ended")
        self._worker.shutdown()

    def send(self, files: Sequence[Path], scan: str) -> None:
        """Send files of a scan to its folder in the archive, as soon as those before are sent."""
        for file in files if self._is_on else ():
            self._last = self._worker.submit(copy_context().run, self._send, file, scan)

    def _send(self, file: Path, scan: str) -> None:
        options = command_line({"below": scan, **self._options}, self._config)
        if reason := self._run(["upload", str(_place(file, scan)), *options]):
            by_hand = shlex.join(["delivery", "upload", str(_place(file, scan)), *options])
            log.get_logger().error("not uploaded", file=file.name, reason=reason, by_hand=by_hand)
        else:
            log.get_logger().info("uploaded", file=file.name, scan=scan, to=self._options["to"])

    def _run(self, words: Sequence[str]) -> str:
        """Run `delivery` to its end; return why it has failed, or nothing."""
        try:
            self._stop.raise_if_set()
            with Children(self._stop, log.repeat) as children:
                child = children.start("upload", "delivery", words)
                for _ in children.events():
                    pass
        except Stopped as reason:
            return str(reason)
        return child.reason if child.failed else ""


def _place(file: Path, scan: str) -> Path:
    """Return where a file of a scan lies by now: the next scan moves it."""
    places = [file, *file.parent.glob(f"{EARLIER}/*/{file.name}")]
    return next((place for place in places if scan_of(place) == scan), file)


def _check_installed() -> None:
    try:
        importlib.import_module("delivery.upload.client")
    except ImportError as error:
        raise UserError(f"--upload: {error}; pip install 'mini-stream[delivery]', or leave --upload out") from error
