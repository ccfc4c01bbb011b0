"""`delivery upload`: sends files to an intake, with a progress bar; cut or killed, the same command goes on."""

import time
from pathlib import Path

import httpx

from delivery.asking import auth_of
from delivery.progress import progress_bar
from delivery.upload.sender import Line, Sender, opened
from delivery.upload.settings import UploadSettings
from ministream.base.errors import UserError
from ministream.base.log import get_logger


def main(settings: UploadSettings) -> int:
    """Send the files that the settings name."""
    found = [(path, name) for given in settings.files for path, name in _files(Path(given))]
    line = Line(settings.chunk, settings.parallel, settings.patience)
    limits = httpx.Limits(max_connections=settings.parallel, max_keepalive_connections=settings.parallel)
    with httpx.Client(
        base_url=settings.service, auth=auth_of(settings), timeout=settings.timeout, limits=limits
    ) as client:
        sender = Sender(client, line)
        for path, name in found:
            _send(sender, path, f"{settings.below.strip('/')}/{name}".lstrip("/"), settings)
    return 0


def _files(given: Path) -> list[tuple[Path, str]]:
    """Return a file, or all below a folder that are not hidden, with the names that they are to have."""
    if not given.is_dir():
        return [(given, given.name)]
    below = given.resolve()
    found = sorted(path for path in below.rglob("*") if path.is_file() and not path.is_symlink())
    names = [(path, path.relative_to(below.parent)) for path in found]
    return [(path, name.as_posix()) for path, name in names if not any(part[0] == "." for part in name.parts[1:])]


def _send(sender: Sender, path: Path, name: str, settings: UploadSettings) -> None:
    with opened(path) as source, progress_bar() as bar:
        _wait_until_settled(source.stamp.mtime_ns / 1e9, settings.settle, path)
        task = bar.add_task(path.name, total=source.size)
        key = f"{path.resolve()} {source.stamp.size} {source.stamp.mtime_ns} {source.stamp.inode}"
        began = time.monotonic()
        stored = sender.send(source, name, key[-200:], lambda count: bar.advance(task, count))
    seconds = time.monotonic() - began
    get_logger().info("sent", file=str(path), place=stored["place"], bytes=stored["size"], seconds=round(seconds, 2))


def _wait_until_settled(written: float, settle: float, path: Path) -> None:
    wait = written + settle - time.time()
    if wait > settle:
        raise UserError(f"{path} was written to in the future, by this clock; mend its time, or give --settle 0")
    if wait > 0:
        time.sleep(wait)
