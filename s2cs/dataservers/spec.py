"""What a proxy is to do, said without naming a program: the values that kinds, runners and supervisor share."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Protocol

from ministream.base.errors import UserError
from s2cs.addresses import Address
from s2cs.store import ProcessRecord

SAFE_PATH = re.compile(r"/[A-Za-z0-9_.,+@/-]*")
SAFE_NAME = re.compile(r"[A-Za-z0-9_.-]+")
SAFE_HOST = re.compile(r"[A-Za-z0-9_.:-]+")


@dataclass(frozen=True, slots=True)
class Tls:
    """One end of the encrypted hop: own key and certificate, and the one certificate that the peer must show.

    The three are files in the session's folder. `server` is the inbound proxy (PROD), `client` the outbound (CONS).
    """

    side: Literal["server", "client"]
    certificate: Path
    key: Path
    peer_certificate: Path


@dataclass(frozen=True, slots=True)
class ProxySpec:
    """One session's proxy: listener i of `pairs` leads to its target, encrypted on one side where `tls` says so.

    `folder` is the session's own: all that the proxy reads or writes lies in it. `rate` is the limit in bytes per
    second of the whole session in each direction, 0 for none.

    Every value ends up in a configuration file, so one that could mean more there than itself is refused here.
    """

    uid: str
    folder: Path
    pairs: tuple[tuple[Address, Address], ...]
    tls: Tls | None = None
    rate: int = 0

    def __post_init__(self) -> None:
        if not SAFE_PATH.fullmatch(str(self.folder)):
            raise UserError(
                f"folder {str(self.folder)!r}: proxies need an absolute path of letters, digits and _ . , + @ - /; "
                "choose another state folder"
            )
        for address in (address for pair in self.pairs for address in pair):
            if not SAFE_HOST.fullmatch(address.host):
                raise UserError(f"{address} is no address that a proxy may be given: give HOST:PORT")
        if not self.pairs or self.rate < 0:
            raise ValueError(f"session {self.uid}: {len(self.pairs)} listeners, {self.rate} B/s")
        for path in (self.tls.certificate, self.tls.key, self.tls.peer_certificate) if self.tls else ():
            if path.parent != self.folder or not SAFE_NAME.fullmatch(path.name):
                raise ValueError(f"{path} does not lie in the session's folder {self.folder}")

    @property
    def ports(self) -> frozenset[int]:
        """The ports that this proxy listens on."""
        return frozenset(listener.port for listener, _ in self.pairs)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes from the connecting side to the target (in) and back (out), and connections that are open now."""

    bytes_in: int = 0
    bytes_out: int = 0
    connections: int = 0


@dataclass(frozen=True, slots=True)
class ContainerNeeds:
    """What a program needs in its container beyond the session's folder: files, by their place, and capabilities."""

    files: Mapping[str, str] = field(default_factory=dict)
    capabilities: tuple[str, ...] = ()


class ProxyKind(Protocol):
    """A program that can be the proxy."""

    name: ClassVar[str]
    program: ClassVar[str]  # what has to be installed, as typed in a shell
    package: ClassVar[str]  # the Debian package that has it
    supports_rate: ClassVar[bool]

    def render(self, spec: ProxySpec) -> dict[str, str]:
        """Return the files, by name, that the program needs in the session's folder beside keys and certificates."""

    def command(self, spec: ProxySpec) -> list[str]:
        """Return the command line; it names the session's folder, by which strays can be told."""

    def container(self, spec: ProxySpec) -> ContainerNeeds | None:
        """Return what a container of it needs; None for a program of ours, in no image, which stays a process."""

    async def traffic(self, spec: ProxySpec) -> Traffic | None:
        """Return what the program itself has counted since it began, None where it does not count."""


class Handle(Protocol):
    """A proxy that was started or adopted."""

    record: ProcessRecord

    def alive(self) -> bool:
        """Return whether it runs."""

    def listening(self) -> frozenset[int]:
        """Return the TCP ports on which it listens."""

    async def wait(self) -> str:
        """Return how it ended, once it has."""

    async def stop(self) -> None:
        """End it with all that it started; afterwards none of its processes and ports remains."""

    def last_words(self) -> str:
        """Return the end of what it said, in one line."""


class Runner(Protocol):
    """A way to run a proxy: as a process, in a container."""

    async def start(self, kind: ProxyKind, spec: ProxySpec) -> Handle:
        """Start the program, whose files are written already."""

    async def adopt(self, spec: ProxySpec, record: ProcessRecord) -> Handle | None:
        """Find a proxy that an earlier control server started; None if it is gone."""
