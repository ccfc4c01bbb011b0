"""What is done with each zip that came: unzip it, call a Python function with its path, run a command with it.

A hook may be called again for the same zip if it failed or the program was killed meanwhile; it must bear that.
"""

import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from delivery.archive.parcels import unpack
from ministream.base.errors import UserError
from ministream.base.log import get_logger

Hook = Callable[[Path], None]

_FUNCTION = re.compile(r"([\w.]+):(\w+)")


def find_hook(words: str, *, keep_zips: bool = True) -> Hook:
    """Return the hook that a setting names: unzip, nothing, MODULE:FUNCTION, or a command.

    Raises
    ------
    UserError
        If there is no such function. The hook itself raises it when it fails.
    """
    if words in ("", "nothing", "none"):
        return lambda _zip: None
    if words == "unzip":
        return lambda zip_: _unzip(zip_, keep_zips)
    if match := _FUNCTION.fullmatch(words):
        return _function(*match.groups())
    return _command(shlex.split(words))


def _unzip(zip_: Path, keep: bool) -> None:
    if not keep and not zip_.exists():  # killed between deleting it and saying so
        return
    count = unpack(zip_, zip_.parent)
    get_logger().info("unzipped", zip=zip_.name, files=count)
    if not keep:
        zip_.unlink()


def _function(module: str, name: str) -> Hook:
    if "" not in sys.path:
        sys.path.insert(0, "")  # users' functions lie where they start the broker
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:
        raise UserError(f"hook {module}:{name}: {error}; is it in this folder or installed?") from error

    def call(zip_: Path) -> None:
        try:
            function(zip_)
        except Exception as error:
            get_logger().exception("the hook's function failed", zip=zip_.name)
            raise UserError(f"hook {module}:{name} failed: {error}") from error

    return call


def _command(command: list[str]) -> Hook:
    def run(zip_: Path) -> None:
        try:
            subprocess.run([*command, zip_], check=True)  # noqa: S603 - the operator's own
        except (OSError, subprocess.CalledProcessError) as error:
            raise UserError(f"hook failed: {error}") from error

    return run
