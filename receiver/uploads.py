"""Sends finished reconstructions to an archive, in the background: by `delivery upload`, a program of its own.

It needs what `delivery` needs, and knows how to go on; the receiver only starts it, one after the other, and tells how
it ended. What is not sent when the receiver ends is logged with the command that sends it.
"""

import shlex
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from ministream.base import log

GRACE = 10.0
"""Seconds that an upload has to end once the receiver does."""


def last_files(written: Sequence[str]) -> list[Path]:
    """Return the files of the last window: the whole volume, and the slabs that it may consist of."""
    if not written:
        return []
    last = Path(written[-1])
    return sorted(last.parent.glob(f"{last.name.partition('-')[0]}-recon*.h5"))


class Uploads:
    """Uploads to one archive; leaving the context ends them.

    Parameters
    ----------
    url
        Of the archive (`delivery intake`); empty: nothing is sent.
    token_file
        File with the token for it.
    """

    def __init__(self, url: str, token_file: str) -> None:
        self._options = ["--to", url, *(["--token-file", token_file] if token_file else [])]
        self._is_on = bool(url)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="upload")
        self._over = threading.Event()
        self._current: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if (current := self._current) is not None:
            with suppress(subprocess.TimeoutExpired):
                current.wait(GRACE)
            current.terminate()
        self._worker.shutdown()

    def send(self, files: Sequence[Path], folder: str) -> None:
        """Send files to a folder of the archive as soon as those before are sent."""
        if self._is_on and files:
            self._worker.submit(self._send, [str(file) for file in files], folder)

    def _send(self, files: Sequence[str], folder: str) -> None:
        words = ["delivery", "upload", *files, "--below", folder, *self._options]
        reason = "the receiver has ended" if self._over.is_set() else self._run(words)
        if reason:
            log.get_logger().error("not uploaded", files=len(files), reason=reason, by_hand=shlex.join(words))
        else:
            log.get_logger().info("uploaded", files=len(files), to=self._options[1])

    def _run(self, words: Sequence[str]) -> str:
        """Run the command; return its last words if it fails."""
        command = [sys.executable, "-m", *words]
        self._current = subprocess.Popen(  # noqa: S603 - our own interpreter and program, no shell
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", start_new_session=True,
        )  # fmt: skip
        said, _ = self._current.communicate()
        lines = said.strip().splitlines() or ["no reason was given"]
        return "" if self._current.returncode == 0 else lines[-1]
