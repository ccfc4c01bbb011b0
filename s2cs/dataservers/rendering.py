"""Configuration files from templates, and programs from where systems keep them."""

import os
import shutil
from functools import cache

import jinja2

from ministream.base.errors import UserError
from s2cs.dataservers.limits import CIPHERSUITES, CONNECT, HANDSHAKE, IDLE, KEEPALIVE, MAX_CONNECTIONS, RUN


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("s2cs.dataservers"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701 - no HTML; ProxySpec lets no value in that could mean more than itself
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals.update(
        run=RUN,
        ciphersuites=CIPHERSUITES,
        connect=CONNECT,
        handshake=HANDSHAKE,
        idle=IDLE,
        keepalive=KEEPALIVE,
        max_connections=MAX_CONNECTIONS,
    )
    return environment


def render(template: str, **values: object) -> str:
    """Fill the template of this name in `templates/`."""
    return _environment().get_template(template).render(values)


def find_program(program: str, package: str) -> str:
    """Return the path of a program; the folders of system programs count, whether or not they are in PATH.

    Raises
    ------
    UserError
        If it is not installed, naming the Debian package.
    """
    folders = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"
    path = shutil.which(program, path=folders)
    if path is None:
        raise UserError(f"proxy {program} is not installed on this gateway: apt install {package}")
    return path
