"""The options of the control server: SciStream's under their own names and defaults, then ours."""

import ipaddress
import socket
from pathlib import Path
from typing import Self

from pydantic import field_validator, model_validator

from ministream.base.settings import Settings, option
from ministream.base.units import Duration

GLOBUS_CLIENT = "c42c0dac-0a52-408e-a04f-5d31bfe0aef8"
"""The Globus application that SciStream's clients ask for by default."""


class ServerSettings(Settings):
    """Serve as control server (S2CS) of a gateway: open proxies for users who may have them."""

    listener_ip: str = option("0.0.0.0", help="Address that the server and its proxies listen on.")  # noqa: S104
    port: int = option(5000, ge=0, le=65535, help="Port of the control server.")
    port_range: str = option("5100-5200", help="Ports of the proxies, first-last.")
    type: str = option(
        "Haproxy",
        help="Kind of proxy: haproxy, nginx, stunnel or ssh, as a process (so do SciStream's names); docker:KIND: in a "
        "container.",
    )
    images: str = option(
        "",
        help="Docker images, KIND=IMAGE[,…], where not haproxy:lts, nginx:stable, else mini-stream-proxies.",
    )
    verbose: bool = option(False, names="-v", help="Log every step (as --log-level debug).", group="Logs")
    server_crt: str = option("server.crt", help="Certificate of the server (PEM).")
    server_key: str = option("server.key", help="Key of the server (PEM).")
    ssl: bool = option(True, help="Control protocol over TLS; without it no token is accepted.")

    advertise: str = option(
        "", help="Host that clients are told to connect to (the listener's address, else this host's)."
    )
    state_dir: str = option("", help="Folder of sessions, keys and proxy settings (~/.local/state/s2cs/PORT).")
    metrics_port: int | None = option(None, ge=0, le=65535, help="Port of /metrics for Prometheus; none: not served.")
    metrics_ip: str = option("127.0.0.1", help="Address that /metrics is served on.")

    client_id: str = option(GLOBUS_CLIENT, help="Globus Auth: client id of this server.", group="Who may ask")
    client_secret: str = option("", help="Globus Auth: its secret; empty: Globus is not asked.", group="Who may ask")
    tokens: str = option("", help="File of tokens (s2cs token add).", group="Who may ask")
    oidc_issuer: str = option("", help="URL of an OpenID issuer whose tokens are accepted.", group="Who may ask")
    oidc_audience: str = option("", help="Audience that its tokens must name.", group="Who may ask")
    insecure_no_auth: bool = option(False, help="Accept everybody.", group="Who may ask")

    allow: str = option(
        "", help="Where tunnels may lead: NETWORK:PORTS[,…], such as 192.168.100.0/24:5000-6000.", group="Policy"
    )
    policy: str = option("", help="YAML file: who may open which tunnels.", group="Policy")
    plaintext: bool = option(
        False, help="Let clients that know no encryption (SciStream's) open tunnels without it.", group="Policy"
    )
    accept_any_rate: bool = option(
        False,
        help="Open a tunnel without the limit that was asked for where the proxy can't keep one (SciStream's "
        "clients always ask for 10000).",
        group="Policy",
    )
    request_timeout: Duration = option(180.0, gt=0, help="Time from request to open tunnel.", group="Policy")
    lease: Duration = option(
        300.0,
        ge=0,
        help="Time that a tunnel outlives the last sign of a client that renews; 0: not bounded.",
        group="Policy",
    )
    idle: Duration = option(
        3600.0, ge=0, help="Time without connection or traffic after which a tunnel ends; 0: never.", group="Policy"
    )
    drain: Duration = option(
        5.0, ge=0, help="Time that live tunnels have to be released after SIGTERM; the rest is ended.", group="Policy"
    )

    @field_validator("listener_ip")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        ipaddress.ip_address(value)
        return value

    @field_validator("advertise")
    @classmethod
    def _can_be_connected_to(cls, value: str) -> str:
        if value and is_unspecified(value):
            raise ValueError("nobody can connect to it: give the host or address that the other side reaches")
        return value

    @field_validator("port_range")
    @classmethod
    def _is_a_range(cls, value: str) -> str:
        first, dash, last = value.partition("-")
        if not (dash and first.isdigit() and last.isdigit() and 0 < int(first) <= int(last) < 65536):
            raise ValueError("give first-last, such as 5100-5200")
        return value

    @field_validator("images")
    @classmethod
    def _names_kinds(cls, value: str) -> str:
        if any(not all(part.partition("=")) for part in value.split(",") if value):
            raise ValueError("give KIND=IMAGE, such as haproxy=haproxy:2.8")
        return value

    @model_validator(mode="after")
    def _tokens_travel_encrypted(self) -> Self:
        if not (self.ssl or self.insecure_no_auth):
            raise ValueError(
                "without --ssl tokens would travel in the clear: add --insecure-no-auth, or serve with --ssl"
            )
        return self

    @property
    def image_by_kind(self) -> dict[str, str]:
        """The Docker images of `images`, by kind of proxy."""
        return dict(part.split("=", 1) for part in self.images.split(",") if part)

    @property
    def ports(self) -> range:
        """The ports of `port_range`, both ends included."""
        first, last = self.port_range.split("-")
        return range(int(first), int(last) + 1)

    @property
    def state_folder(self) -> Path:
        """Where the server keeps its state; another one for each port unless named."""
        return Path(self.state_dir or f"~/.local/state/s2cs/{self.port}").expanduser().absolute()

    @property
    def token_file(self) -> Path:
        """The file of tokens, by default beside the certificate, where `s2cs init` puts it."""
        return Path(self.tokens) if self.tokens else Path(self.server_crt).with_name("tokens.json")


def is_unspecified(host: str) -> bool:
    """Return whether `host` is 0.0.0.0, :: or another way to say "every address"."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_unspecified
    except ValueError:
        return False


def own_address() -> str:
    """Return the address that this host speaks from to the world, or loopback where it has none.

    The address is read off a UDP socket that is connected, but never sent from, to a documentation address.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])
