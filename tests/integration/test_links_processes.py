"""Links between processes: nothing is lost when the sending one ends, and a signal ends a wait."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

import numpy as np
import pytest

from aps_mini_apps.frames import Frame, FrameKind
from aps_mini_apps.links import FrameSender
from aps_mini_apps.links.pubsub import Publisher, Subscriber
from aps_mini_apps.links.push import PullReceiver, PushSender
from ministream.base.lifecycle import StopFlag, Stopped

spawn = multiprocessing.get_context("spawn")

FREE = "tcp://127.0.0.1:*"
PATIENCE = 60.0
FRAMES, SHAPE = 40, (1024, 512)
"""80 MiB: more than the queues and the system's buffers hold."""

SENDERS: dict[str, Callable[..., FrameSender]] = {"push": PushSender, "pubsub": Publisher}
RECEIVERS = {"push": PullReceiver, "pubsub": Subscriber}


def feed(kind: str, pipe: Connection) -> None:
    """Send a scan and end at once."""
    with SENDERS[kind](FREE, timeout=PATIENCE) as sender:
        pipe.send(sender.endpoint)
        for k in range(FRAMES):
            pixels = np.full(SHAPE, k, np.float32)
            sender.send(Frame(kind=FrameKind.PROJECTION, pixels=pixels, sequence=k))
        sender.end()
    pipe.send("ended")


def wait_for_a_frame(kind: str, pipe: Connection) -> None:
    """Wait at an address where nothing will ever come, and tell what ended that."""
    stop = StopFlag().install()
    with RECEIVERS[kind]("tcp://127.0.0.1:9", stop=stop) as receiver:
        pipe.send("waiting")
        try:
            receiver.receive()
        except Stopped as reason:
            pipe.send(str(reason))


def start(target: Callable[[str, Connection], None], kind: str) -> tuple[SpawnProcess, Connection]:
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=target, args=(kind, theirs), daemon=True)
    process.start()
    return process, ours


def hear(pipe: Connection) -> object:
    assert pipe.poll(PATIENCE), "the other process said nothing"
    return pipe.recv()


@pytest.mark.parametrize("kind", ["push", "pubsub"])
def test_a_sender_that_ends_its_process_loses_nothing(kind: str) -> None:
    process, pipe = start(feed, kind)
    with RECEIVERS[kind](str(hear(pipe)), timeout=PATIENCE) as receiver:
        frames = []
        while (frame := receiver.receive()) is not None:
            frames.append((frame.sequence, float(frame.pixels[0, 0]), float(frame.pixels[-1, -1])))
        assert receiver.lost == 0
    assert frames == [(k, k, k) for k in range(FRAMES)]
    assert hear(pipe) == "ended"
    process.join(PATIENCE)
    assert process.exitcode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_wait(number: signal.Signals) -> None:
    process, pipe = start(wait_for_a_frame, "push")
    assert hear(pipe) == "waiting"
    assert process.pid is not None
    os.kill(process.pid, number)
    assert hear(pipe) == number.name
    process.join(PATIENCE)
    assert process.exitcode == 0
