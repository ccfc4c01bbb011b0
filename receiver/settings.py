"""The options of the receiver service and of its workers on other machines."""

import ipaddress
from pathlib import Path

from pydantic import field_validator

from ministream.base.settings import Settings, option
from ministream.base.units import Duration

PORT = 8090

ACCESS = "receiver-access"


class ReceiverSettings(Settings):
    """Serve scans: reconstruct what comes from the listeners that a client names, and tell it how that goes.

    How the workers reconstruct is said in the section `sirt`.
    """

    bind: str = option("127.0.0.1", help="Address that the service listens on; 0.0.0.0: every one.")
    port: int = option(PORT, ge=0, le=65535, help="Its port; 0: any free one.")
    access: str = option(
        ACCESS, help="Folder for the token and the certificate, made on the first start; clients need a copy."
    )
    private: str = option("", help="Folder for the certificate's key; default: `private` within the access folder.")
    plaintext: bool = option(False, help="Serve without TLS: whoever can listen on the way reads the token.")

    output: str = option("output", names="-o", help="Folder for reconstructions, preview.png and report.html.")
    report: bool = option(True, help="Write preview.png and report.html when a run has ended.")
    workers: int = option(16, ge=1, help="Most listeners, and so workers, of a run.", group="Runs")
    remote_workers: int = option(
        0, ge=0, help="Start no workers here: as many as this join from elsewhere.", group="Runs"
    )
    join_timeout: Duration = option(60.0, gt=0, help="Time that a run waits for its workers to join.", group="Runs")
    vanished: Duration = option(
        10.0, gt=0, help="Silence after which a worker elsewhere is taken for gone.", group="Runs"
    )
    networks: str = option(
        "", help="Where listeners may be: networks divided by commas, such as 192.168.102.0/24; empty: anywhere."
    )
    slices: int = option(
        0, ge=0, help="Slices of a worker for which kernels are compiled at the start; 0: when a scan comes.",
        group="Runs",
    )  # fmt: skip
    upload: str = option(
        "", help="URL of an archive (`delivery intake`) that each finished reconstruction is sent to; empty: none.",
        group="Upload",
    )  # fmt: skip
    upload_token_file: str = option("", help="File with the token for it.", group="Upload")
    history: int = option(10_000, ge=100, help="Events of a run that are kept for who follows it.", group="Runs")

    @field_validator("networks")
    @classmethod
    def _names_networks(cls, value: str) -> str:
        for part in value.split(",") if value else ():
            ipaddress.ip_network(part.strip())
        return value

    @property
    def allowed(self) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
        """The networks that listeners may be in; none: any."""
        return [ipaddress.ip_network(part.strip()) for part in self.networks.split(",") if part.strip()]

    @property
    def key_folder(self) -> Path:
        """Where the certificate's key lies."""
        return Path(self.private) if self.private else Path(self.access) / "private"


class WorkerSettings(Settings):
    """Reconstruct for a receiver on another machine, run after run; the output folder is shared with it."""

    receiver: str = option(f"https://127.0.0.1:{PORT}", help="URL of the receiver.")
    access: str = option(ACCESS, help="Folder with the receiver's token and certificate.")
    plaintext: bool = option(False, help="Let the receiver's URL begin with http://: its token travels in the clear.")
    output: str = option("output", names="-o", help="The receiver's output folder, as it is mounted here.")
    name: str = option("", help="What the receiver's log calls this worker; default: this machine's name.")
    timeout: Duration = option(60.0, gt=0, help="Time for which the receiver may be away before this one ends.")
