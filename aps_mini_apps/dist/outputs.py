"""Where corrected projections go: one link per worker, ours (push) or the old one (TMQ)."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Protocol, Self

from aps_mini_apps.geometry import partition_rows
from aps_mini_apps.links import FrameSender
from aps_mini_apps.links.push import PushSender
from aps_mini_apps.links.tmq import TmqDistributor
from ministream.base.errors import UserError
from ministream.base.lifecycle import StopFlag


class Outputs(Protocol):
    """The links to all workers."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @property
    def endpoints(self) -> Sequence[str]:
        """Where workers connect: one address each, or the base address of all."""
        ...

    def workers(self) -> int:
        """Wait until it is known how many workers there are; return that number."""
        ...

    def start(self, rows: int, columns: int) -> Sequence[FrameSender]:
        """Share `rows` out among the workers; return a sender for each, in the order of their rows."""
        ...

    def tell(self, event: Mapping[str, Any]) -> None:
        """Let a log event travel to one of the workers, where the link carries such."""
        ...


class PushOutputs:
    """Our own link: worker k listens to port base + k (or, with port `*`, to any free one)."""

    def __init__(self, bind: str, count: int, *, stop: StopFlag, timeout: float | None) -> None:
        self._senders: list[PushSender] = []
        with ExitStack() as opened:
            for rank in range(count):
                sender = PushSender(_port_for(bind, rank), stop=stop, timeout=timeout)
                self._senders.append(opened.enter_context(sender))
            opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with ThreadPoolExecutor(len(self._senders)) as pool:  # if they say why, none waits for another's worker
            list(pool.map(lambda sender: sender.__exit__(kind, error, trace), self._senders))

    @property
    def endpoints(self) -> Sequence[str]:
        """One address per worker."""
        return [sender.endpoint for sender in self._senders]

    def workers(self) -> int:
        """Return the number that was given."""
        return len(self._senders)

    def start(self, rows: int, columns: int) -> Sequence[FrameSender]:  # noqa: ARG002 - the Protocol's
        """Return the senders; UserError if there are more workers than rows."""
        try:
            partition_rows(rows, len(self._senders))
        except ValueError as error:
            raise UserError(str(error)) from error
        return self._senders

    def tell(self, event: Mapping[str, Any]) -> None:
        """Tell the first worker: one log is enough for all of them."""
        self._senders[0].tell(event)


class TmqOutputs:
    """The link of the APS mini-apps: the workers say how many they are; `expected` is how many ports to keep free."""

    def __init__(self, bind: str, expected: int, *, stop: StopFlag, timeout: float | None) -> None:
        self._distributor = TmqDistributor(bind, ports=expected, stop=stop, timeout=timeout)

    def __enter__(self) -> Self:
        self._distributor.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._distributor.__exit__(kind, error, trace)

    @property
    def endpoints(self) -> Sequence[str]:
        """The base address: worker k connects to its port + k."""
        return [self._distributor.endpoint]

    def workers(self) -> int:
        """Wait for the first worker's question, which says how many there are."""
        return self._distributor.workers()

    def start(self, rows: int, columns: int) -> Sequence[FrameSender]:
        """Tell each worker its rows and return the senders."""
        self._distributor.start(rows, columns)
        return self._distributor.senders

    def tell(self, event: Mapping[str, Any]) -> None:
        """Do nothing: the old link carries projections only."""


def _port_for(bind: str, rank: int) -> str:
    base, _, port = bind.rpartition(":")
    if not port.isdigit() or port == "0":
        return bind
    return f"{base}:{int(port) + rank}"
