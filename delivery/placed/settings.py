"""The options of placed storage: of one site, of both on one machine, and of the look at both."""

from pathlib import Path

from pydantic import field_validator

from delivery.placed.rules import Place, Site
from ministream.base.settings import Settings, option
from ministream.base.units import Duration, Size

PORTS = {Site.ZERO: 8000, Site.ONE: 8080}


class RuleSettings(Settings):
    """What both sites must agree on."""

    rule: str = option(
        "bits",
        help="Where a file belongs: bits (more zeros than ones: zero), size:100MB (up to that: zero), type:h5,tif or "
        "project:raw (these: zero), an entry point, or MODULE:FUNCTION.",
        group="Rule",
    )
    tie: Place = option(
        Place.BOTH, help="Where a file belongs that the rule leaves open: both, zero, one.", group="Rule"
    )
    broker: str = option(
        "",
        help="Broker between the sites: kafka://host:9092, nats://host:4222, redis://host:6379; empty: by HTTP.",
        group="Sites",
    )
    insecure_no_auth: bool = option(False, help="Take files from, and give them to, everybody.", group="Who may ask")


class SiteSettings(RuleSettings):
    """Run one site of a placed storage."""

    site: Site = option("", help="Which one: zero or one.", variable="SITE")
    host: str = option("127.0.0.1", help="Address to listen on.")
    port: int | None = option(
        None, ge=0, le=65535, help="Port to listen on; empty: 8000 for zero, 8080 for one; 0: any free one."
    )
    datadir: Path = option(Path("placed"), help="Folder of this site's files.")
    database: str = option(
        "", help="URL of its database; empty: as ZERO_DRIVER, …, ONE_DB_NAME say, else a SQLite file in its folder."
    )
    peer: str = option("", help="URL of the other site, as this one reaches it; empty: on this machine.", group="Sites")
    peer_external: str = option("", help="URL of the other site, as clients reach it; empty: the same.", group="Sites")
    peer_token: Path = option(
        Path("peer-token"), help="File with a token of this site's name that the other site knows.", group="Sites"
    )
    kafka_port: int | None = option(
        None, ge=1, le=65535, help="Port of a Kafka broker on --kafka-host.", variable="KAFKA_PORT", group="Sites"
    )
    kafka_host: str = option("localhost", help="Its host.", variable="KAFKA_HOST", group="Sites")
    tokens: Path = option(
        Path("tokens.json"), help="File of tokens (delivery token add), the other site's too.", group="Who may ask"
    )
    largest: Size = option(0, ge=0, help="Bytes of the largest file that is taken; 0: no limit.", group="Limits")
    spare: Size = option(100_000_000, ge=0, help="Bytes of its disk that are left to others.", group="Limits")
    stall: Duration = option(60.0, gt=0, help="Silence after which an upload is given up.", group="Limits")
    uploads: int = option(16, ge=1, le=1000, help="Uploads read at a time; others wait.", group="Limits")
    fetches: int = option(4, ge=1, le=64, help="Files fetched from the other site at a time.", group="Limits")

    @field_validator("peer", "peer_external")
    @classmethod
    def _url(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("give a URL such as http://one:8080")
        return value.rstrip("/")

    @property
    def listening_port(self) -> int:
        """Where it listens."""
        return PORTS[self.site] if self.port is None else self.port

    @property
    def peer_url(self) -> str:
        """URL of the other site."""
        return self.peer or f"http://127.0.0.1:{PORTS[self.site.other]}"

    @property
    def broker_url(self) -> str:
        """URL of the broker; empty for none."""
        return self.broker or (f"kafka://{self.kafka_host}:{self.kafka_port}" if self.kafka_port else "")


class UpSettings(RuleSettings):
    """Run both sites of a placed storage on this machine, with nothing else."""

    host: str = option("127.0.0.1", help="Address to listen on.")
    zero_port: int = option(PORTS[Site.ZERO], ge=1, le=65535, help="Port of site zero.")
    one_port: int = option(PORTS[Site.ONE], ge=1, le=65535, help="Port of site one.")
    datadir: Path = option(Path("placed"), help="Folder of both sites' files, databases and tokens.")


class CheckSettings(Settings):
    """Compare what both sites have on record with what lies on their disks; both must run."""

    zero: str = option("http://127.0.0.1:8000", help="URL of site zero.")
    one: str = option("http://127.0.0.1:8080", help="URL of site one.")
    token: Path = option(Path("placed/keys/operator"), help="File with a token named operator that both sites know.")
    read: bool = option(True, help="Read and digest every file; without, only see whether it is there.")
    patience: Duration = option(60.0, ge=0, help="Time that files which are on their way are given.")


class RepairSettings(CheckSettings):
    """Mend what a comparison of both sites finds; both must run."""
