"""The options of the server and of the broker."""

from pathlib import Path
from typing import Self

from pydantic import field_validator, model_validator

from delivery.settings import NAME, ServiceSettings, listed
from ministream.base.settings import Settings, option
from ministream.base.units import Duration, Size


class ServerSettings(ServiceSettings):
    """Offer what is new in a folder to brokers, which mirror it."""

    host: str = option("127.0.0.1", help="Address to listen on.", variable="SERVER_HOST")
    port: int = option(8080, ge=0, le=65535, help="Port to listen on; 0: any free one.", variable="SERVER_PORT")
    datadir: Path = option(
        Path("media"),
        help="Folder of projects: files are offered from PROJECT/bar and end in PROJECT/archive.",
        variable="SERVER_MOUNT",
    )
    database: str = option("", help="URL of the database; empty: a SQLite file in the folder of projects.")
    extensions: str = option("drc,ply,vpcc,gpcc,zip,h5", help="Extensions that may be asked for, by commas.")
    batch: Size = option(0, ge=0, help="Bytes of files in a batch, at least one file; 0: all that is new.")
    require_acknowledgement: bool = option(
        True,
        help="Archive files only when the broker says that it has them; without, for brokers that never say so: when "
        "the last byte has left.",
    )
    receiver_output: Path | None = option(
        None, help="Folder that is offered in place of PROJECT/bar: a receiver's output.", variable="RECEIVER_OUTPUT"
    )
    project: str = option("", help="Project that --receiver-output belongs to.", variable="PROJECT")
    tokens: Path | None = option(None, help="File of tokens (delivery token add).", group="Who may ask")
    brokers: str = option(
        "",
        help="Brokers that must have a file before it is archived, by commas; empty: all that have a token.",
        group="Who may ask",
    )
    insecure_no_auth: bool = option(False, help="Answer everybody, as one broker.", group="Who may ask")

    @field_validator("extensions", "brokers")
    @classmethod
    def _names(cls, value: str) -> str:
        if wrong := [name for name in listed(value) if not NAME.fullmatch(name)]:
            raise ValueError(f"{wrong[0]!r} is no name; give letters, digits and . _ -, divided by commas")
        return value

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.receiver_output and not NAME.fullmatch(self.project):
            raise ValueError("--receiver-output needs --project: the name under which brokers ask for it")
        if not self.insecure_no_auth and self.tokens is None:
            raise ValueError(
                "give --tokens FILE (made by `delivery token add`), or --insecure-no-auth to answer everybody"
            )
        if self.insecure_no_auth and (self.tokens or self.brokers):
            raise ValueError("--insecure-no-auth knows no names: it goes with neither --tokens nor --brokers")
        return self

    @property
    def database_url(self) -> str:
        """URL of the database, wherever it comes from."""
        return self.database or f"sqlite:///{self.datadir.absolute()}/.delivery/server.db"


class BrokerSettings(Settings):
    """Fetch what is new from a server, on a timer."""

    interval: Duration = option(60.0, gt=0, help="Time from one request to the next.", variable="INTERVAL")
    api: str = option(
        "http://127.0.0.1:8080/stream", help="URL of the server, which ends in /stream.", variable="API_URL"
    )
    project: str = option("", help="Project to mirror.", variable="PROJECT")
    ext: str = option("h5", help="Extension of the files to mirror.", variable="EXT")
    datadir: Path = option(
        Path("media"), help="Folder of projects: what comes goes to PROJECT/download.", variable="BROKER_MOUNT"
    )
    wait: Duration = option(
        0.0, ge=0, help="Time that the server holds a request while there is nothing new (long poll); 0: only timer."
    )
    token_file: Path | None = option(None, help="File with this broker's token (delivery token add).")
    hook: str = option(
        "unzip",
        help="What is done with each zip: unzip beside it, nothing, a Python function MODULE:FUNCTION or a command; "
        "both get the zip's path.",
    )
    keep_zips: bool = option(True, help="Keep zips that were unzipped.")
    once: bool = option(False, help="Ask once and end: exit code 0 if that went well.")

    @field_validator("project", "ext")
    @classmethod
    def _name(cls, value: str) -> str:
        if not NAME.fullmatch(value):
            raise ValueError("give a name of letters, digits and . _ -")
        return value

    @field_validator("api")
    @classmethod
    def _url(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError("give a URL such as http://server:8080/stream")
        return value.rstrip("/")
