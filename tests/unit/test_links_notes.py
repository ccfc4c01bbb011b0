"""Notes on the push link: beside the frames, never in their way."""

import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest
import zmq

from aps_mini_apps.frames import Frame, FrameKind
from aps_mini_apps.links.push import QUEUE_NOTES, PeerStoppedError, PullReceiver, PushSender
from aps_mini_apps.wire import WireError, note, timage
from aps_mini_apps.wire.note import Note
from ministream.base import log
from ministream.base.errors import UserError
from ministream.base.lifecycle import StopFlag, Stopped

FREE, PATIENCE = "tcp://127.0.0.1:*", 30.0


def event(number: int) -> dict[str, object]:
    return {"time": "2026-11-21T16:09:20Z", "level": "info", "service": "daq", "event": "progress", "sent": number}


def frame(sequence: int, side: int = 4) -> Frame:
    return Frame(kind=FrameKind.PROJECTION, pixels=np.zeros((side, side), np.float32), sequence=sequence)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


def test_notes_keep_their_place_among_the_frames_and_are_none(pool: ThreadPoolExecutor) -> None:
    heard: list[object] = []
    with PushSender(FREE, timeout=PATIENCE) as sender:
        receiver = PullReceiver(sender.endpoint, timeout=PATIENCE, on_note=lambda n: heard.append(n.fields["sent"]))

        def feed() -> None:
            for k in range(3):
                sender.tell(event(k))
                sender.send(frame(k))
            sender.tell(event(3))
            sender.end()

        done = pool.submit(feed)
        with receiver:
            for k in range(3):
                assert receiver.receive().sequence == k  # type: ignore[union-attr]
                assert heard == list(range(k + 1))
            assert receiver.receive() is None
            done.result()
            assert heard == [0, 1, 2, 3]
            assert (receiver.lost, receiver.refused, sender.untold) == (0, 0, 0)


def test_telling_waits_for_nobody_and_holds_no_more_than_so_many() -> None:
    with PushSender(FREE, timeout=None) as sender:
        for k in range(QUEUE_NOTES + 5):
            sender.tell(event(k))
        assert sender.untold == 5
        sender.tell({"event": "without a service"})
        assert sender.untold == 6


def test_notes_for_which_there_was_no_room_leave_with_the_next_frame(pool: ThreadPoolExecutor) -> None:
    """A reader that holds the sender back all the time still hears all of them."""
    heard: list[object] = []
    frames = 40
    with PushSender(FREE, queue_frames=1, timeout=PATIENCE) as sender:

        def feed() -> None:
            for k in range(frames):
                sender.send(frame(k, side=512))
                sender.tell(event(k))
            sender.end()

        with PullReceiver(
            sender.endpoint, queue_frames=1, timeout=PATIENCE, on_note=lambda n: heard.append(n.fields["sent"])
        ) as receiver:
            done = pool.submit(feed)
            assert [f.sequence for f in iter(receiver.receive, None)] == list(range(frames))
            done.result()
    assert heard == list(range(frames))
    assert sender.untold == 0


def test_a_broken_note_is_refused_like_a_broken_frame() -> None:
    stream = io.StringIO()
    log.configure("test", style="json", stream=stream)
    sound = note.encode(Note.from_event(event(0)))

    def forbid(said: Note) -> None:
        raise WireError(f"{said.service} may not speak here")

    with zmq.Context() as context, context.socket(zmq.PUSH) as peer, ExitStack() as stack:
        port = peer.bind_to_random_port("tcp://127.0.0.1")
        receiver = stack.enter_context(PullReceiver(f"tcp://127.0.0.1:{port}", timeout=PATIENCE, on_note=forbid))
        for message in (sound[:-1], note.MAGIC, sound, bytes(timage.encode(frame(0))), timage.END_OF_SCAN):
            peer.send(message)
        assert receiver.receive() is not None
        assert receiver.receive() is None
        assert (receiver.refused, receiver.lost) == (3, 0)
    logged = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in logged] == ["message refused"] * 3
    assert logged[-1]["reason"] == "daq may not speak here"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (UserError("scan.h5 cannot be read"), "scan.h5 cannot be read"),
        (Stopped("SIGTERM"), "SIGTERM"),
        (KeyError("secret"), "an internal fault (KeyError)"),
    ],
)
def test_a_sender_that_is_left_by_an_exception_says_why(
    pool: ThreadPoolExecutor, error: Exception, reason: str
) -> None:
    """After the frames that were sent before, and though it was asked to stop itself."""
    stop = StopFlag()

    def feed(sender: PushSender) -> None:
        with sender:
            sender.send(frame(0))
            sender.send(frame(1))
            stop.request("SIGTERM")
            raise error

    sender = PushSender(FREE, stop=stop, timeout=PATIENCE)
    with PullReceiver(sender.endpoint, timeout=PATIENCE, peer="the producer") as receiver:
        done = pool.submit(feed, sender)
        assert [receiver.receive().sequence for _ in range(2)] == [0, 1]  # type: ignore[union-attr]
        with pytest.raises(PeerStoppedError) as caught:
            receiver.receive()
        assert str(caught.value) == f"the producer stopped: {reason}"
        with pytest.raises(type(error)):
            done.result(PATIENCE)


def test_a_sender_without_a_receiver_does_not_stay_for_its_last_words() -> None:
    def leave() -> None:
        with PushSender(FREE, timeout=None):
            raise UserError("nobody hears this")

    with ThreadPoolExecutor(1) as pool, pytest.raises(UserError, match="nobody hears this"):
        pool.submit(leave).result(6.0)


def test_a_log_is_heard_and_repeated_without_being_changed() -> None:
    heard: list[dict[str, object]] = []
    stream = io.StringIO()
    log.configure("dist", style="json", stream=stream)
    with log.heard_by(heard.append):
        log.get_logger().warning("packets lost", missing=2)
        log.get_logger().debug("not logged, not heard")
    log.get_logger().info("heard by nobody")
    assert [e["event"] for e in heard] == ["packets lost"]
    log.configure("sirt", style="json", stream=stream)
    log.repeat(heard[0] | {"via": "sirt"})
    first, _, repeated = map(json.loads, stream.getvalue().splitlines())
    assert repeated == first | {"via": "sirt"}
    assert Note.from_event(first).as_event() == first
