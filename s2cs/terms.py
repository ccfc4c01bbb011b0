"""The words that a gateway and those around it share: terms, wishes, answers, refusals, and what a proxy can do."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ministream.base.errors import UserError
from s2cs.addresses import Address
from s2cs.dataservers.spec import ProxySpec, Traffic
from s2cs.sessions import Session
from s2cs.store import ProcessRecord

OnRestart = Callable[[int, str], None]
OnFailed = Callable[[str], None]


class Proxy(Protocol):
    """A proxy that runs, and is started again when it dies."""

    @property
    def record(self) -> ProcessRecord:
        """What is needed to find its process after a restart of this server."""
        ...

    async def traffic(self) -> Traffic | None:
        """Return what went through it, or None where it doesn't tell."""
        ...

    async def stop(self) -> None:
        """End it; return when it is gone."""
        ...


class Proxies(Protocol):
    """The kind of proxy that this gateway opens."""

    name: str
    supports_rate: bool

    async def start(self, kind: str, spec: ProxySpec, on_restart: OnRestart, on_failed: OnFailed) -> Proxy:
        """Start one; return when its listeners accept. `UserError` with the program's own words if it doesn't."""
        ...

    async def adopt(
        self, kind: str, spec: ProxySpec, record: ProcessRecord, on_restart: OnRestart, on_failed: OnFailed
    ) -> Proxy | None:
        """Take charge of one that an earlier server started; None if it is gone."""
        ...

    async def end_strangers(self, owned: list[ProcessRecord]) -> None:
        """End the proxies of this state folder that are not among `owned`."""
        ...


class AlreadyKnown(UserError):  # noqa: N818 - says what is wrong, as its base does
    """The uid belongs to another session, or did."""


class NotYours(UserError):  # noqa: N818 - says what is wrong, as its base does
    """The session belongs to somebody else."""


class Unmet(UserError):  # noqa: N818 - says what is wrong, as its base does
    """The gateway cannot serve this under its present terms."""


class TimedOut(UserError):  # noqa: N818 - says what is wrong, as its base does
    """What the request waited for did not come."""


class Interrupted(UserError):  # noqa: N818 - says what is wrong, as its base does
    """The session ended while its request waited."""


class Draining(UserError):  # noqa: N818 - says what is wrong, as its base does
    """The gateway takes no new sessions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """What the operator has settled for all sessions."""

    folder: Path
    """Holds a private folder of each session."""
    host: str
    """Where proxies listen."""
    advertise: str
    """What clients are told to connect to."""
    plaintext: bool = False
    accept_any_rate: bool = False
    request_timeout: float = 180.0
    lease: float = 0.0
    idle: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """What a client asks for."""

    uid: str
    role: str
    num_conn: int
    rate: int = 0
    """Bytes per second; 0: unlimited."""
    encrypted: bool = False
    greeted: bool = False
    targets: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a client is told of its session."""

    listeners: tuple[Address, ...]
    targets: tuple[Address, ...]
    certificate: str
    lease: float
    warnings: tuple[str, ...]
    proxy: str


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """A session as its owner, or the metrics, may see it."""

    session: Session
    listeners: tuple[Address, ...]
    traffic: Traffic
