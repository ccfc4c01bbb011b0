"""The options of the intake and of its client."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import BeforeValidator, field_validator, model_validator

from delivery.settings import ServiceSettings
from ministream.base.errors import UserError
from ministream.base.settings import Settings, option
from ministream.base.units import Duration, Size

FORWARDS = ("http://", "https://", "put+http://", "put+https://", "s3://")


class IntakeSettings(ServiceSettings):
    """Take uploads in: verified chunks in any order, by the archive's own routes or by tus."""

    port: int = option(8060, ge=0, le=65535, help="Port to listen on; 0: any free one, told in the log.")
    database: str = option("sqlite:///intake.db", help="URL of the database: sqlite:///file.db or postgresql://….")
    store: str = option(
        "uploads", help="Where files end: a folder, s3://bucket/prefix or mongodb://host/database.", group="Store"
    )
    spool: Path = option(
        Path("spool"), help="Folder for chunks on their way that can't be written to their places yet.", group="Store"
    )
    space: Size = option(0, ge=0, help="Most bytes of all uploads: 50TB; 0: what the disk takes.", group="Store")
    spare: Size = option(1_000_000_000, ge=0, help="Bytes of the disk that are left to others.", group="Store")
    expire: Duration = option(86_400.0, gt=0, help="Silence after which an open upload expires.", group="Store")
    memory: Size = option(
        32 << 20,
        ge=1 << 20,
        help="Bytes held at once of what tus and old clients send; the largest chunk, too.",
        group="Store",
    )
    stall: Duration = option(60.0, gt=0, help="Silence after which a request for a chunk is given up.", group="Store")
    unknown_size: Size = option(
        10_000_000_000, ge=1, help="Reserved for uploads that tell their size at the end.", group="Store"
    )
    roots: str = option("", help="Folders whose files may be prepared by their path, by commas.", group="Forward")
    forward: str = option(
        "",
        help="Where to send on what is stored: https://… (another intake), put+https://… or s3://bucket/prefix.",
        group="Forward",
    )
    forward_token_file: Path | None = option(None, help="File with the token for there.", group="Forward")
    forward_attempts: int = option(100, ge=1, help="Tries until it is given up.", group="Forward")
    old_clients_key: str = option(
        "",
        help="Key that old clients make their HMACs with; lets them in, with JSON bodies. They prove little: it is no "
        "secret.",
        group="Who may send",
    )
    allow_origin: str = option(
        "", help="Origins of web pages that may send from browsers, by commas; *: all.", group="Who may send"
    )
    insecure_no_auth: bool = option(False, help="Take from everybody, without a login.", group="Who may send")
    registration: bool = option(True, help="Let people register themselves.", group="Who may send")
    licence: Duration = option(0.0, ge=0, help="Licence of a new account; 0: when granted.", group="Who may send")
    quota: Size = option(1_000_000_000_000, gt=0, help="Bytes that a new account may send a day.", group="Who may send")
    session: Duration = option(1_209_600.0, gt=0, help="Time without use that ends a login.", group="Who may send")

    @field_validator("forward")
    @classmethod
    def _target(cls, value: str) -> str:
        if value and not value.startswith(FORWARDS):
            raise ValueError(f"give a URL that begins with {', '.join(FORWARDS)}")
        return value

    @property
    def root_folders(self) -> list[Path]:
        """Folders whose files may be prepared."""
        return [Path(folder.strip()) for folder in self.roots.split(",") if folder.strip()]


def _words(given: object) -> object:
    return given.split() if isinstance(given, str) else given


class UploadSettings(Settings):
    """Send files to an intake; an upload that was cut goes on where it stopped."""

    files: Annotated[tuple[str, ...], BeforeValidator(_words)] = option((), help="Files, or folders of them.")
    service: str = option("http://127.0.0.1:8060", names="--to --url", help="Address of the intake.")
    below: str = option("", help="Folder there: a path without leading slash; empty: one's own.")
    token_file: Path | None = option(None, help="File with a bearer token.", group="Login")
    user: str = option("", help="Name to log in with.", group="Login")
    password_file: Path | None = option(None, help="File with its password; without, it is asked for.", group="Login")
    chunk: Size = option(32 << 20, ge=1, help="Bytes of a chunk.", group="Line")
    parallel: int = option(4, ge=1, le=64, help="Chunks on their way at once.", group="Line")
    timeout: Duration = option(60.0, gt=0, help="Silence after which a connection is tried anew.", group="Line")
    patience: Duration = option(600.0, ge=0, help="How long a service that does not answer is tried.", group="Line")
    settle: Duration = option(2.0, ge=0, help="Time without a write after which a file counts as finished.")

    @field_validator("service")
    @classmethod
    def _url(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError("give a URL such as https://archive.example.org")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if not self.files:
            raise UserError("give at least one file: delivery upload FILE… --to URL")
        return self
