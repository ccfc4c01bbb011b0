"""The options that every service of this package has."""

import re
from pathlib import Path

from ministream.base.settings import Settings, option
from ministream.base.units import Duration

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""Names of projects, extensions, bearers of tokens: fit for a folder and for a URL as they are."""


class ServiceSettings(Settings):
    """A service: where it listens, and what it keeps."""

    host: str = option("127.0.0.1", help="Address to listen on.")
    port: int = option(8000, ge=0, le=65535, help="Port to listen on; 0: any free one, told in the log.")
    database: str = option("sqlite:///delivery.db", help="URL of the database: sqlite:///file.db or postgresql://….")
    settle: Duration = option(2.0, ge=0, help="Time without a write after which a file counts as finished.")
    tokens: Path | None = option(None, help="File of tokens (delivery token add).", group="Who may ask")


def listed(names: str) -> list[str]:
    """Return the names in a list that is divided by commas."""
    return [name.strip() for name in names.split(",") if name.strip()]
