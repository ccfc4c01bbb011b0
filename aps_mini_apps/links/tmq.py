"""TMQ over REQ/REP, both ends: a distributor and its reconstruction workers, as the APS mini-apps talk.

The distributor listens on one port for each worker: base port + rank. Rank 0's info request tells how many
there are; no info request is answered before all have asked. Then each worker asks for every projection, and
a caller that sends to all of them in turn moves them in lock step.

Every message counts, and a reply's number is its request's plus one. A request that is malformed, or not the
one that is due, is logged, counted and answered by an empty message, since REQ/REP must alternate; the next
good one is served, under the number that was due. A worker refuses a malformed reply in the same way and asks
for the next projection, but ends with an error when it is refused itself or the numbers disagree: then
nothing that follows could be trusted.
"""

import re
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import zmq

from aps_mini_apps.frames import Frame, FrameKind, RowRange
from aps_mini_apps.geometry import partition_rows
from aps_mini_apps.links._sockets import LARGEST_REQUEST, Line
from aps_mini_apps.links._waiting import Patience
from aps_mini_apps.wire import WireError, tmq
from ministream.base.errors import UserError
from ministream.base.lifecycle import StopFlag
from ministream.base.log import get_logger
from ministream.base.owner import Owner

MAX_WORKERS = 256
"""A request that speaks of more is refused: each of them would get a port."""

ATTEMPTS = 20
"""Free base ports that are tried when the next ones must be free as well."""

LINGER = 2.0
"""Seconds that a worker's goodbye gets to leave."""

R = TypeVar("R", bound=tmq.InfoRequest | tmq.DataRequest | tmq.Finish)


class TmqDistributor(Owner):
    """Deals slabs of projections out to workers: `workers()`, `start(...)`, then send to each of `senders`.

    Parameters
    ----------
    bind_endpoint
        tcp://HOST:PORT with the port of rank 0, the next ones being those of the other ranks; `*` as host for
        every address of this machine, as port for free ones.
    ports
        Ports that are opened at once; with a free base port as many as there will be workers, so that the
        base is chosen with the next ones free. Others are opened when rank 0 has asked.
    stop, timeout
        What ends a wait: the flag, or so many seconds without a request (None: never).

    Attributes
    ----------
    senders
        The workers in the order of their ranks; complete once `workers()` has returned.

    Raises
    ------
    UserError
        If it cannot listen there.
    """

    def __init__(
        self,
        bind_endpoint: str,
        *,
        ports: int = 1,
        stop: StopFlag | None = None,
        timeout: float | None = None,
    ) -> None:
        self._patience = Patience(stop, timeout)
        self._host, port = _split(bind_endpoint)
        for attempt in range(ATTEMPTS if port in ("*", "0") else 1, 0, -1):
            self.senders: list[WorkerSender] = []
            try:
                self._listen(port)
                self._listen_up_to(ports)
                break
            except UserError:
                self.close()
                if attempt == 1:
                    raise

    @property
    def endpoint(self) -> str:
        """The base port's endpoint."""
        return self.senders[0].endpoint

    def workers(self) -> int:
        """Wait until every worker has asked for its rows, and return how many they are.

        Raises
        ------
        UserError
            If the port of one of them is in use.
        LinkTimeoutError, Stopped
            If one does not ask.
        """
        count = self.senders[0].await_info_request(None)
        self._listen_up_to(count)
        for unused in self.senders[count:]:
            unused.close()
        del self.senders[count:]
        for sender in self.senders[1:]:
            sender.await_info_request(count)
        return count

    def start(self, total_rows: int, columns: int) -> None:
        """Tell every worker its share of `total_rows` rows of `columns` columns each.

        Raises
        ------
        UserError
            If there are more workers than rows.
        """
        try:
            slabs = partition_rows(total_rows, len(self.senders))
        except ValueError as error:
            raise UserError(f"distributor at {self.endpoint}: {error}") from error
        for sender, rows in zip(self.senders, slabs, strict=True):
            sender.answer_info(rows, columns)

    def close(self) -> None:
        """Give all ports back."""
        for sender in self.senders:
            sender.close()

    def _listen_up_to(self, count: int) -> None:
        base = int(_split(self.endpoint)[1])
        while len(self.senders) < count:
            self._listen(str(base + len(self.senders)))

    def _listen(self, port: str) -> None:
        line = Line(zmq.REP, self._patience, largest=LARGEST_REQUEST, watched=True).bind(f"{self._host}:{port}")
        self.senders.append(WorkerSender(line, rank=len(self.senders)))


class WorkerSender(Owner):
    """The distributor's end of one worker's link: a `FrameSender` of slabs, made by `TmqDistributor`.

    Attributes
    ----------
    endpoint
        Where this worker asks.
    rows
        Its rows, once told.
    refused
        Requests that were refused.
    """

    def __init__(self, line: Line, rank: int) -> None:
        self._line = line
        self._rank = rank
        self._due = 0
        self._columns = 0
        self._last = "no projection so far"
        self.endpoint = line.endpoint
        self.rows: RowRange | None = None
        self.refused = 0

    def send(self, frame: Frame) -> None:
        """Wait until the worker asks, and answer with its rows of one projection.

        `frame.pixels` must be float32 line integrals of the worker's rows alone (`Frame.slab`).

        Raises
        ------
        ValueError
            If they are of another shape.
        LinkTimeoutError, Stopped
            If the worker does not ask.
        """
        shape = (self.rows.count if self.rows else 0, self._columns)
        if frame.pixels.shape != shape:
            raise ValueError(f"worker {self._rank} takes slabs of the shape {shape}, not {frame.pixels.shape}")
        center = self._columns / 2 if frame.center is None else frame.center
        pixels = frame.pixels.astype(np.float32, copy=False)
        data = tmq.ProjectionData(projection_id=frame.number, theta=frame.angle, center=center, pixels=pixels)
        self._await(tmq.DataRequest)
        self._answer(data)
        self._last = f"last projection {frame.number}"

    def end(self) -> None:
        """Tell the worker that the scan is over, as soon as it asks, and take its goodbye."""
        self._await(tmq.DataRequest)
        self._answer(tmq.Finish())
        self._await(tmq.Finish)

    def close(self) -> None:
        """Give the port back."""
        self._line.close()

    def await_info_request(self, workers: int | None) -> int:
        """Wait for the worker's first request; return how many `workers` it speaks of (None: any number)."""
        while True:
            request = self._await(tmq.InfoRequest)
            if request.rank == self._rank and request.size == (workers or request.size) <= MAX_WORKERS:
                return request.size
            self._due = 0  # what is refused does not count
            self._refuse(
                f"worker {request.rank} of {request.size} asks at the port of worker {self._rank} of "
                f"{workers or f'at most {MAX_WORKERS}'}"
            )

    def answer_info(self, rows: RowRange, columns: int) -> None:
        """Tell the worker its rows."""
        self.rows, self._columns = rows, columns
        reply = tmq.InfoReply(
            total_sinograms=rows.total, first_sinogram=rows.start, sinograms=rows.count, columns=columns
        )
        self._answer(reply)

    def _await(self, wanted: type[R]) -> R:
        """Wait for the request that is due; refuse all others."""
        while True:
            message = self._line.receive(
                f"worker {self._rank} sent no {wanted.__name__} to {self.endpoint} for {self._line.patience} "
                f"({self._last}); is it running?",
                while_connected=wanted is tmq.DataRequest,  # it is still at work on the last one
            )
            try:
                number, request = tmq.decode(message)
            except WireError as error:
                self._refuse(str(error))
                continue
            if isinstance(request, wanted) and number == self._due:
                self._due = number + 1
                return request
            self._refuse(f"{type(request).__name__} {number} came where {wanted.__name__} {self._due} was due")

    def _answer(self, reply: tmq.Message) -> None:
        self._line.send(tmq.encode(self._due, reply), f"worker {self._rank} took no reply at {self.endpoint}")
        self._due += 1

    def _refuse(self, reason: str) -> None:
        self.refused += 1
        get_logger().warning("request refused", endpoint=self.endpoint, reason=reason, refused=self.refused)
        self._line.send(b"", f"worker {self._rank} took no reply at {self.endpoint}")


class TmqWorker(Owner):
    """One worker's end: asks a distributor for its rows of every projection.

    The first `receive` asks which rows they are; frames hold them in `rows`, and a view of the message as
    `pixels`, float32 (rows, columns).

    Parameters
    ----------
    connect_endpoint
        tcp://HOST:PORT with the port of rank 0.
    rank, workers
        Which worker this is, from 0, and how many there are.
    on_rows
        Called with the worker's rows and the number of columns, as soon as they are told: before the first projection.
    stop, timeout
        What ends a wait: the flag, or so many seconds without an answer (None: never).

    Attributes
    ----------
    refused, lost
        Malformed replies that were refused; each was a projection that is lost.

    Raises
    ------
    UserError
        If the endpoint is no address; on `receive`, if the other end does not keep to the protocol.
    LinkTimeoutError, Stopped
        On `receive`.
    """

    def __init__(
        self,
        connect_endpoint: str,
        rank: int,
        workers: int,
        *,
        on_rows: Callable[[RowRange, int], None] | None = None,
        stop: StopFlag | None = None,
        timeout: float | None = None,
    ) -> None:
        host, base = _split(connect_endpoint)
        if base == "*":
            raise UserError(f"cannot connect to {connect_endpoint}: give the distributor's base port")
        self._endpoint = f"{host}:{int(base) + rank}"
        self._line = Line(zmq.REQ, Patience(stop, timeout)).connect(self._endpoint)
        self._identity = tmq.InfoRequest(rank=rank, size=workers)
        self._number = 0
        self._on_rows = on_rows
        self._rows: RowRange | None = None
        self._columns: int | None = None
        self._received = 0
        self._over = False
        self.refused = 0

    @property
    def lost(self) -> int:
        """Projections that came malformed."""
        return self.refused

    def receive(self) -> Frame | None:
        """Ask for the next projection; None once the scan is over."""
        if self._rows is None:
            self._ask_rows()
        while not self._over:
            try:
                return self._ask_projection()
            except WireError as error:
                self.refused += 1
                get_logger().warning("reply refused", endpoint=self._endpoint, reason=str(error), refused=self.refused)
        return None

    def close(self) -> None:
        """Disconnect; a goodbye that is still queued gets a moment to leave."""
        self._line.close(LINGER if self._over else 0.0)

    def _ask_rows(self) -> None:
        try:
            reply = self._ask(self._identity)
        except WireError as error:
            raise UserError(f"what answers at {self._endpoint} is no distributor: {error}") from error
        if not isinstance(reply, tmq.InfoReply):
            raise UserError(f"the distributor at {self._endpoint} had no rows for this worker; start both anew")
        first, count = reply.first_sinogram, reply.sinograms
        self._rows = RowRange(start=first, stop=first + count, total=reply.total_sinograms)
        self._columns = reply.columns
        if self._on_rows is not None:
            self._on_rows(self._rows, self._columns)

    def _ask_projection(self) -> Frame | None:
        reply = self._ask(tmq.DataRequest())
        if isinstance(reply, tmq.ProjectionData):
            return self._frame(reply)
        if not isinstance(reply, tmq.Finish):
            raise WireError(f"{type(reply).__name__} came where a projection was due")
        self._line.send(tmq.encode(self._number, tmq.Finish()), self._complaint())
        self._over = True
        return None

    def _ask(self, request: tmq.Message) -> tmq.Message:
        """Send `request` and return the reply; both count, whatever the reply is."""
        self._line.send(tmq.encode(self._number, request), self._complaint())
        message = self._line.receive(self._complaint())
        due = self._number + 1
        self._number += 2
        if not message:
            raise UserError(
                f"the distributor at {self._endpoint} refused message {due - 1}: it is busy with another "
                "scan, or with another worker of this rank; start both anew"
            )
        number, reply = tmq.decode(message, columns=self._columns)
        if number != due:
            raise UserError(
                f"the distributor at {self._endpoint} sent message {number} where {due} was due; start both anew"
            )
        return reply

    def _frame(self, data: tmq.ProjectionData) -> Frame:
        assert self._rows is not None  # noqa: S101 - told before any projection
        if len(data.pixels) != self._rows.count:
            raise WireError(f"{len(data.pixels)} rows came where {self._rows.count} were due")
        self._received += 1
        return Frame(
            kind=FrameKind.PROJECTION,
            pixels=data.pixels,
            sequence=self._received - 1,
            number=data.projection_id,
            angle=data.theta,
            center=data.center,
            rows=self._rows,
            numbered=False,
        )

    def _complaint(self) -> str:
        return (
            f"no answer from the distributor at {self._endpoint} for {self._line.patience} "
            f"({self._received} projections so far); is it running, and are all workers?"
        )


def _split(endpoint: str) -> tuple[str, str]:
    """Divide tcp://HOST:PORT into its two halves."""
    match = re.fullmatch(r"(tcp://.+):(\d+|\*)", endpoint)
    if not match:
        raise UserError(f"{endpoint} is no address: give tcp://HOST:PORT")
    return match[1], match[2]
