"""Configuration files from templates, and programs from where systems keep them."""

import os
import shutil
from functools import cache

import jinja2

from ministream.base.errors import UserError

RUN = "run"
"""Name of the folder, within a session's, that the proxy itself writes to."""

CIPHERSUITES = "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256:TLS_AES_256_GCM_SHA384"
"""All are safe; the first is the fastest where the processor has AES instructions."""

CONNECT, HANDSHAKE = 10, 10
"""Seconds that a connection to a target, and a stranger's way through the handshake, may take."""

IDLE = 20 * 24 * 3600
"""Seconds after which a silent connection is cut: 20 days, longer than any scan pauses; 24.8 fit a 32-bit count of ms.

Who is dead is told by TCP keep-alive instead. There is no TCP_USER_TIMEOUT: Linux would count the time in which a
living, but paused, receiver keeps its window closed.
"""

KEEPALIVE = {"idle": 30, "interval": 10, "count": 3}
"""Silent for 30 s: ask every 10 s, give up after three."""

MAX_CONNECTIONS = 512
"""Connections that one session may hold: bounds what strangers at the listeners can cost."""


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
