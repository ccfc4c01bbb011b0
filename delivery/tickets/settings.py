"""The options of the ticket service and of its client."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import BeforeValidator, model_validator

from delivery.settings import ServiceSettings
from delivery.tickets.admission import HIGHEST
from ministream.base.errors import UserError
from ministream.base.settings import Settings, option
from ministream.base.units import Duration, Size


class TicketSettings(ServiceSettings):
    """Serve downloads by ticket."""

    root: Path = option(Path("output"), names="--datadir", help="Folder whose files are offered.")
    external: str = option("", help="Address in links, as seen from outside: https://host/path; empty: as asked.")
    store: str = option("artefacts", help="Folder or s3://bucket/prefix for what is prepared.", group="Artefacts")
    space: Size = option(10_000_000_000, gt=0, help="Most bytes of it: 50GB.", group="Artefacts")
    spare: Size = option(1_000_000_000, ge=0, help="Bytes of its disk that are left to others.", group="Artefacts")
    attic: str = option("", help="Store that expired artefacts move to, if asked for.", group="Artefacts")
    keep: Duration = option(172_800.0, gt=0, help="Life of an artefact, unless asked otherwise.", group="Artefacts")
    longest_keep: Duration = option(1_209_600.0, gt=0, help="The longest that may be asked for.", group="Artefacts")
    preparations: int = option(2, ge=1, le=64, help="Preparations at a time.", group="Queue")
    deletions: int = option(1, ge=1, le=16, help="Deletions at a time; they have a lane of their own.", group="Queue")
    ageing: Duration = option(600.0, gt=0, help="Waiting that is worth a step of priority (0 to 9).", group="Queue")
    patience: Duration = option(172_800.0, gt=0, help="Wait after which a ticket leaves the queue.", group="Queue")
    memory: Duration = option(2_592_000.0, gt=0, help="How long a ticket that is over is remembered.", group="Queue")
    heartbeat: Duration = option(15.0, gt=0, help="Silence after which an event stream says so.", group="Queue")
    insecure_no_auth: bool = option(False, help="Serve everybody, without a login.", group="Who may ask")
    registration: bool = option(True, help="Let people register themselves.", group="Who may ask")
    licence: Duration = option(0.0, ge=0, help="Licence of a new account; 0: when granted.", group="Who may ask")
    quota: Size = option(
        1_000_000_000_000, gt=0, help="Bytes that a new account may ask for a day.", group="Who may ask"
    )
    most_waiting: int = option(100, ge=1, help="Tickets that a person may have waiting.", group="Who may ask")
    session: Duration = option(1_209_600.0, gt=0, help="Time without use that ends a login.", group="Who may ask")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.keep > self.longest_keep:
            raise UserError("keep is longer than longest_keep; lower the one or raise the other")
        return self


def _words(given: object) -> object:
    return given.split() if isinstance(given, str) else given


class DownloadSettings(Settings):
    """Ask a ticket service for files, wait, and fetch them; a download that was cut goes on where it stopped."""

    paths: Annotated[tuple[str, ...], BeforeValidator(_words)] = option(
        (), help="Paths, folders (which end in a slash) or patterns of files, divided by spaces."
    )
    output: Path = option(Path(), names="-o --directory", help="Folder to put them in.")
    service: str = option("http://127.0.0.1:8000", names="--url", help="Address of the ticket service.")
    token_file: Path | None = option(None, help="File with a bearer token.", group="Login")
    user: str = option("", help="Name to log in with.", group="Login")
    password_file: Path | None = option(None, help="File with its password; without, it is asked for.", group="Login")
    priority: int = option(3, ge=0, le=HIGHEST, help="0 to 9, the highest first.", group="Ticket")
    keep: Duration | None = option(
        None, help="Life of what is prepared: 2 days; the service has a limit.", group="Ticket"
    )
    volume: Size = option(0, ge=0, help="Most bytes of files in one archive: 2GB; 0: one for all.", group="Ticket")
    prepare: bool = option(True, help="Have a copy prepared; without, files are streamed as they are.", group="Ticket")
    unpack: bool = option(True, help="Unpack the archives, and delete them.")
    timeout: Duration = option(60.0, gt=0, help="Silence after which a connection is tried anew.")
    patience: Duration = option(600.0, ge=0, help="How long a service that does not answer is tried.")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if not self.paths:
            raise UserError("give at least one path: delivery download PATH… -o DIR")
        return self
