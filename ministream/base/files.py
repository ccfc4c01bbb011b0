"""Files that are there whole or not at all."""

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

from ministream.base.errors import UserError


@contextlib.contextmanager
def whole_or_absent(path: Path, mode: int = 0o666) -> Iterator[Path]:
    """Yield an empty file beside `path` to write to; rename it to `path` when the block ends well, else remove it.

    Neither a reader nor a crash ever sees half a file: the bytes are on the disk before the name is.

    Parameters
    ----------
    path
        The file; what stands there is replaced.
    mode
        Its permissions, less the umask, from before the first byte is written.

    Raises
    ------
    UserError
        If the file cannot be written (the disk is full, the folder has gone); what stood at `path` is intact.
    """
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with explained(path):
            os.close(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
            yield aside
            with aside.open("rb") as file:
                os.fsync(file.fileno())
            aside.replace(path)
    finally:
        with contextlib.suppress(OSError):  # the folder itself may have gone
            aside.unlink(missing_ok=True)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Raise what goes wrong in writing `path` as a UserError that says so in one line."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # HDF5 reports a full disk as either
        raise UserError(f"cannot write {path}: {_reason(error)}; files written before are intact") from error


def _reason(error: Exception) -> str:
    """Return the system's own words, which HDF5 wraps in its own."""
    wrapped = re.search(r"error message = '([^']+)'", str(error))
    return wrapped.group(1) if wrapped else getattr(error, "strerror", None) or str(error)
