"""The options that every service of this package has."""

from pathlib import Path

from ministream.base.settings import Settings, option
from ministream.base.units import Duration


class ServiceSettings(Settings):
    """A service: where it listens, and what it keeps."""

    host: str = option("127.0.0.1", help="Address to listen on.")
    port: int = option(8000, ge=0, le=65535, help="Port to listen on; 0: any free one, told in the log.")
    database: str = option("sqlite:///delivery.db", help="URL of the database: sqlite:///file.db or postgresql://….")
    settle: Duration = option(2.0, ge=0, help="Time without a write after which a file counts as finished.")
    tokens: Path | None = option(None, help="File of bearer tokens, a line each: NAME TOKEN.", group="Who may ask")
