"""Sends files to an intake: `delivery upload`, and `upload` in Python. Cut or killed, the same call goes on."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from delivery.asking import auth_of
from delivery.progress import progress_bar
from delivery.upload.sender import Line, Sender, opened
from delivery.upload.sendfile import transport_to
from delivery.upload.settings import UploadSettings
from ministream.base.errors import UserError
from ministream.base.log import get_logger


def upload(
    *files: str | Path, to: str, progress: Callable[[int], object] = lambda _bytes: None, **options: Any
) -> list[dict[str, Any]]:
    """Send files, and what folders hold, to an intake, and return what it says of each: `place`, `size`, `tree`, ….

    Parameters
    ----------
    files
        Files, or folders of them.
    to
        Address of the intake.
    progress
        Called, by several threads, with the bytes that have arrived since the last call.
    options
        As `delivery upload` has them: `token_file`, `below`, `chunk`, `patience`, ….

    Raises
    ------
    UserError
        If a file can't be sent, or changes meanwhile. Those before it are sent; the same call goes on.
    ValueError
        If there is no such option, or it can't have that value.
    """
    settings = UploadSettings(files=tuple(map(str, files)), service=to, **options)
    with _sender(settings) as sender:
        return [_send(sender, path, name, settings.settle, progress) for path, name in _found(settings)]


def main(settings: UploadSettings) -> int:
    """Send the files that the settings name, with progress bars."""
    with _sender(settings) as sender:
        for path, name in _found(settings):
            _send_visibly(sender, path, name, settings.settle)
    return 0


@contextmanager
def _sender(settings: UploadSettings) -> Iterator[Sender]:
    line = Line(settings.chunk, settings.parallel, settings.patience)
    limits = httpx.Limits(max_connections=settings.parallel, max_keepalive_connections=settings.parallel)
    with httpx.Client(
        base_url=settings.service,
        auth=auth_of(settings),
        timeout=settings.timeout,
        limits=limits,
        transport=transport_to(settings.service),
    ) as client:
        yield Sender(client, line)


def _found(settings: UploadSettings) -> list[tuple[Path, str]]:
    """Return all files, with the names that they are to have there."""
    below = settings.below.strip("/")
    found = [(path, name) for given in settings.files for path, name in _files(Path(given))]
    return [(path, f"{below}/{name}".lstrip("/")) for path, name in found]


def _files(given: Path) -> list[tuple[Path, str]]:
    """Return a file, or all below a folder that are not hidden, with the names that they are to have."""
    if not given.is_dir():
        return [(given, given.name)]
    below = given.resolve()
    found = sorted(path for path in below.rglob("*") if path.is_file() and not path.is_symlink())
    names = [(path, path.relative_to(below.parent)) for path in found]
    return [(path, name.as_posix()) for path, name in names if not any(part[0] == "." for part in name.parts[1:])]


def _send_visibly(sender: Sender, path: Path, name: str, settle: float) -> None:
    began = time.monotonic()
    with progress_bar() as bar:
        task = bar.add_task(path.name, total=path.stat().st_size if path.exists() else None)
        stored = _send(sender, path, name, settle, lambda count: bar.advance(task, count))
    seconds = time.monotonic() - began
    get_logger().info("sent", file=str(path), place=stored["place"], bytes=stored["size"], seconds=round(seconds, 2))


def _send(sender: Sender, path: Path, name: str, settle: float, progress: Callable[[int], object]) -> dict[str, Any]:
    """Send a file once nobody has written to it for `settle` seconds, and return the intake's last word on it."""
    with opened(path) as source:
        _wait_until_settled(source.stamp.mtime_ns / 1e9, settle, path)
        key = f"{path.resolve()} {source.stamp.size} {source.stamp.mtime_ns} {source.stamp.inode}"
        return sender.send(source, name, key[-200:], progress)


def _wait_until_settled(written: float, settle: float, path: Path) -> None:
    wait = written + settle - time.time()
    if wait > settle:
        raise UserError(f"{path} was written to in the future, by this clock; mend its time, or give --settle 0")
    if wait > 0:
        time.sleep(wait)
