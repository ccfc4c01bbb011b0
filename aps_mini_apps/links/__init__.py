"""How frames travel: two small Protocols and their adapters.

`memory` joins two threads, `push` two programs of ours; `pubsub` and `tmq` speak as the APS mini-apps do. A
sender or receiver is a context manager that owns its socket; its waits end when the program is asked to stop
(`ministream.base.lifecycle`) or, with `LinkTimeoutError`, when the other end stays silent for too long.
"""

from types import TracebackType
from typing import Protocol, Self

from aps_mini_apps.frames import Frame
from ministream.base.errors import UserError


class LinkTimeoutError(UserError):
    """The other end kept silent: the text names who waited, for what, at which address, and how long."""


class _Owner(Protocol):
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class FrameSender(_Owner, Protocol):
    """The left end of a link."""

    @property
    def endpoint(self) -> str:
        """Where the other end finds this one, with the port that was really bound."""
        ...

    def send(self, frame: Frame) -> None:
        """Hand over one frame; wait while the bounded queue is full."""
        ...

    def end(self) -> None:
        """Say that the scan is over, and wait until all that was sent has left."""
        ...


class FrameReceiver(_Owner, Protocol):
    """The right end of a link."""

    @property
    def lost(self) -> int:
        """Frames that were sent and never came, as far as the sender's numbers tell."""
        ...

    @property
    def refused(self) -> int:
        """Messages that were no frame: each was logged with the reason and passed over."""
        ...

    def receive(self) -> Frame | None:
        """Return the next frame, or None once the scan is over (and on every call after that)."""
        ...
