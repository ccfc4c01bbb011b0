"""PUSH/PULL: one program of ours feeds another.

The left end listens, the right one connects. Both queues are bounded, so that a slow reader holds the sender
back; nothing is dropped while both ends live. ZeroMQ would deal frames out among several readers: the sender
watches its connections and ends with an error when a second reader comes.
"""

import zmq

from aps_mini_apps.links._sequence import SequenceCounter
from aps_mini_apps.links._sockets import LARGEST_REQUEST, Line
from aps_mini_apps.links._timage import TImageReceiver, TImageSender
from aps_mini_apps.links._waiting import Patience
from ministream.base.errors import UserError
from ministream.base.lifecycle import StopFlag

QUEUE_FRAMES = 16
"""Frames held at each end: 16 of 2048 x 2048 uint16 are 128 MiB."""


class PushSender(TImageSender):
    """Listens for one `PullReceiver` and sends it frames; the first waits until it is there.

    Parameters
    ----------
    bind_endpoint
        tcp://HOST:PORT, with `*` for every address of this machine, or for any free port.
    queue_frames
        Frames that may wait at this end.
    stop, timeout
        What ends a wait: the flag, or so many seconds without a receiver (None: never).

    Raises
    ------
    UserError
        If it cannot listen there; on `send`, if a second receiver has connected.
    LinkTimeoutError, Stopped
        On `send` and `end`.
    """

    def __init__(
        self,
        bind_endpoint: str,
        *,
        queue_frames: int = QUEUE_FRAMES,
        stop: StopFlag | None = None,
        timeout: float | None = None,
    ) -> None:
        line = Line(
            zmq.PUSH,
            Patience(stop, timeout),
            high_water_mark=queue_frames,
            largest=LARGEST_REQUEST,
            watched=True,
        )
        super().__init__(line.bind(bind_endpoint), "the receiver")

    def _prepare(self) -> None:
        if self._line.connections() > 1:
            raise UserError(
                f"a second receiver has connected to {self.endpoint}: each would get half of the frames; "
                "start one receiver only"
            )


class PullReceiver(TImageReceiver):
    """Connects to a `PushSender` and takes its frames; only messages with our checksum are accepted.

    Parameters
    ----------
    connect_endpoint
        tcp://HOST:PORT of the sender, which need not be there yet.
    queue_frames
        Frames that may wait at this end.
    stop, timeout
        What ends a wait: the flag, or so many seconds without a message (None: never).

    Raises
    ------
    UserError
        If the endpoint is no address.
    LinkTimeoutError, Stopped
        On `receive`.
    """

    def __init__(
        self,
        connect_endpoint: str,
        *,
        queue_frames: int = QUEUE_FRAMES,
        stop: StopFlag | None = None,
        timeout: float | None = None,
    ) -> None:
        line = Line(zmq.PULL, Patience(stop, timeout), high_water_mark=queue_frames)
        line.connect(connect_endpoint)
        super().__init__(line, connect_endpoint, SequenceCounter(), strict=True)
