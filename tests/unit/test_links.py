"""Links over real sockets on this machine: what each promises, and what its text says when it cannot."""

import io
import itertools
import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pytest
import zmq

from aps_mini_apps.frames import Frame, FrameKind, RowRange, Volume
from aps_mini_apps.geometry import partition_rows
from aps_mini_apps.links import FrameReceiver, FrameSender, LinkTimeoutError, memory
from aps_mini_apps.links._sequence import SequenceCounter
from aps_mini_apps.links._waiting import Patience
from aps_mini_apps.links.pubsub import Publisher, Subscriber, VolumePublisher
from aps_mini_apps.links.push import PullReceiver, PushSender
from aps_mini_apps.links.tmq import TmqDistributor, TmqWorker
from aps_mini_apps.wire import timage
from ministream.base import log
from ministream.base.errors import UserError
from ministream.base.lifecycle import StopFlag, Stopped

FREE = "tcp://127.0.0.1:*"
PATIENCE = 30.0
"""Seconds after which a wait that should have ended fails its test."""


def make_frame(sequence: int = 0, *, shape: tuple[int, int] = (3, 5), **fields: object) -> Frame:
    pixels = np.full(shape, sequence, dtype=np.float32)
    return Frame(**{"kind": FrameKind.PROJECTION, "pixels": pixels, "sequence": sequence} | fields)


def send_some(sender: FrameSender, count: int, taken: list[int]) -> None:
    for k in range(1, count + 1):
        sender.send(make_frame(k, shape=(512, 1024)))
        taken.append(k)
    sender.end()


def drain(receiver: FrameReceiver) -> list[Frame]:
    return list(iter(receiver.receive, None))


def hurry(end: FrameSender | FrameReceiver, seconds: float) -> None:
    """Give an end less patience than it was opened with: making the connection may take its time."""
    holder, name = (end._line, "patience") if hasattr(end, "_line") else (end, "_patience")
    setattr(holder, name, Patience(getattr(holder, name).stop, seconds))


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as executor:
        yield executor


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as owners:
        yield owners


@pytest.fixture
def peer() -> Iterator[Callable[[int], zmq.Socket]]:
    """Makes raw sockets, which play other people's programs."""
    with ExitStack() as sockets, zmq.Context() as context:
        context.linger = 0
        context.rcvtimeo = context.sndtimeo = round(1000 * PATIENCE)
        yield lambda kind: sockets.enter_context(context.socket(kind))
        sockets.close()


@pytest.fixture
def logged() -> Iterator[Callable[[], list[dict[str, object]]]]:
    stream = io.StringIO()
    log.configure("test", style="json", stream=stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    log.configure("test")


@pytest.fixture
def silent_port() -> Iterator[str]:
    """An endpoint that nobody listens at, nor will."""
    with closing(socket.socket()) as held:
        held.bind(("127.0.0.1", 0))
        yield f"tcp://127.0.0.1:{held.getsockname()[1]}"


Peer = Callable[[int], zmq.Socket]
Opener = Callable[..., tuple[FrameSender, FrameReceiver]]


@pytest.fixture(params=["memory", "push", "pubsub"])
def open_link(request: pytest.FixtureRequest, stack: ExitStack) -> Opener:
    def open_(capacity: int = 4, **patience: object) -> tuple[FrameSender, FrameReceiver]:
        patience = {"timeout": PATIENCE} | patience
        if request.param == "memory":
            sender, receiver = memory.pair(capacity, **patience)
        elif request.param == "push":
            sender = PushSender(FREE, queue_frames=capacity, **patience)
            receiver = PullReceiver(sender.endpoint, queue_frames=capacity, **patience)
        else:
            sender = Publisher(FREE, high_water_mark=capacity, **patience)
            receiver = Subscriber(sender.endpoint, high_water_mark=capacity, **patience)
        return stack.enter_context(sender), stack.enter_context(receiver)

    return open_


# What every link of whole frames promises ------------------------------------------------------------------


def test_a_frame_arrives_as_it_left(open_link: Opener, pool: ThreadPoolExecutor) -> None:
    sender, receiver = open_link()
    sent = make_frame(
        kind=FrameKind.FLAT,
        pixels=np.arange(12, dtype=np.uint16).reshape(3, 4),
        number=7,
        angle=0.5,
        center=1.75,
        resets=True,
        rows=RowRange(start=2, stop=5, total=9),
        scan="tooth",
        timestamp_ns=1_700_000_000_123_456_789,
    )
    done = pool.submit(lambda: (sender.send(sent), sender.end()))
    (got,) = drain(receiver)
    done.result()
    np.testing.assert_array_equal(got.pixels, sent.pixels)
    assert got.pixels.dtype == sent.pixels.dtype
    for name in set(Frame.__slots__) - {"pixels"}:
        assert getattr(got, name) == getattr(sent, name), name


def test_after_the_end_comes_nothing(open_link: Opener, pool: ThreadPoolExecutor) -> None:
    sender, receiver = open_link()
    done = pool.submit(sender.end)
    assert receiver.receive() is None
    assert receiver.receive() is None
    done.result()


def test_all_frames_arrive_in_order_and_none_is_lost(open_link: Opener, pool: ThreadPoolExecutor) -> None:
    sender, receiver = open_link(capacity=3)

    def feed() -> None:
        for k in range(3000):
            sender.send(make_frame(k))
        sender.end()

    done = pool.submit(feed)
    assert [(f.sequence, f.pixels[0, 0]) for f in drain(receiver)] == [(k, k) for k in range(3000)]
    assert (receiver.lost, receiver.refused) == (0, 0)
    done.result()


def test_a_reader_that_does_not_read_holds_the_sender_back(
    open_link: Opener, pool: ThreadPoolExecutor, request: pytest.FixtureRequest
) -> None:
    """For as long as it is connected: slow is not silent."""
    sender, receiver = open_link(capacity=2)
    greeting = pool.submit(receiver.receive)
    sender.send(make_frame(0))
    assert greeting.result().sequence == 0
    if request.node.callspec.params["open_link"] != "memory":
        hurry(sender, 0.3)

    taken: list[int] = []
    done = pool.submit(send_some, sender, 60, taken)
    with pytest.raises(TimeoutError):
        done.result(1.5)
    assert len(taken) <= 40, "2 frames of 2 MiB at either end, and what the system buffers"
    assert [f.sequence for f in drain(receiver)] == list(range(1, 61))
    done.result()


def test_silence_ends_in_a_sentence(open_link: Opener, pool: ThreadPoolExecutor) -> None:
    sender, receiver = open_link()
    greeting = pool.submit(receiver.receive)
    sender.send(make_frame(412))
    assert greeting.result().sequence == 412
    hurry(receiver, 0.3)
    with pytest.raises(LinkTimeoutError) as caught:
        receiver.receive()
    assert f"no frame from {sender.endpoint} for 0.3 s" in str(caught.value)
    assert "is the sender running?" in str(caught.value)


def test_a_stop_ends_the_wait_for_a_frame(open_link: Opener, pool: ThreadPoolExecutor) -> None:
    stop = StopFlag()
    _, receiver = open_link(stop=stop, timeout=None)
    waiting = pool.submit(receiver.receive)
    stop.request("SIGTERM")
    with pytest.raises(Stopped, match="SIGTERM"):
        waiting.result(PATIENCE)


def test_a_stop_ends_the_wait_for_room(open_link: Opener, pool: ThreadPoolExecutor) -> None:
    stop = StopFlag()
    sender, _ = open_link(capacity=1, stop=stop, timeout=None)

    waiting = pool.submit(send_some, sender, 1000, [])
    stop.request("SIGINT")
    with pytest.raises(Stopped, match="SIGINT"):
        waiting.result(PATIENCE)


# Endpoints -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("listen", [PushSender, Publisher, VolumePublisher, TmqDistributor])
def test_a_port_in_use_is_named(listen: Callable[[str], FrameSender], stack: ExitStack) -> None:
    first = stack.enter_context(listen(FREE))
    with pytest.raises(UserError, match=f"cannot listen at {first.endpoint}: the port is in use"):
        listen(first.endpoint)


def test_a_synch_port_in_use_gives_the_other_port_back() -> None:
    with Publisher(FREE, synch_endpoint=FREE) as first:
        free = PushSender(FREE)
        endpoint = free.endpoint
        free.close()
        with pytest.raises(UserError, match=f"cannot listen at {first.synch_endpoint}"):
            Publisher(endpoint, synch_endpoint=first.synch_endpoint)
    PushSender(endpoint).close()


@pytest.mark.parametrize("address", ["localhost:5000", "tcp://127.0.0.1", "tcp://127.0.0.1:port"])
@pytest.mark.parametrize(
    "use",
    [PushSender, Publisher, VolumePublisher, TmqDistributor, PullReceiver, Subscriber,
     lambda address: TmqWorker(address, 0, 1)],
)  # fmt: skip
def test_what_is_no_address_is_refused(use: Callable[[str], object], address: str) -> None:
    with pytest.raises(UserError, match=f"{address}.*give tcp://HOST:PORT"):
        use(address)


def test_a_wildcard_host_can_be_reached_from_here(pool: ThreadPoolExecutor) -> None:
    with PushSender("tcp://*:*", timeout=PATIENCE) as sender:
        assert sender.endpoint.startswith("tcp://127.0.0.1:")
        with PullReceiver(sender.endpoint, timeout=PATIENCE) as receiver:
            done = pool.submit(lambda: (sender.send(make_frame()), sender.end()))
            assert len(drain(receiver)) == 1
            done.result()


def test_a_closed_port_is_free_at_once() -> None:
    with PushSender(FREE) as sender:
        pass
    sender.close()
    for _ in range(3):
        with PushSender(sender.endpoint) as again:
            assert again.endpoint == sender.endpoint


def test_a_receiver_that_never_heard_anything_says_so(silent_port: str) -> None:
    with PullReceiver(silent_port, timeout=0.2) as receiver, pytest.raises(LinkTimeoutError) as caught:
        receiver.receive()
    expected = f"no frame from {silent_port} for 0.2 s (no packet so far); is the sender running?"
    assert str(caught.value) == expected


# push ------------------------------------------------------------------------------------------------------


def test_a_sender_without_a_receiver_times_out() -> None:
    with PushSender(FREE, timeout=0.2) as sender, pytest.raises(LinkTimeoutError) as caught:
        sender.send(make_frame())
    expected = f"the receiver took no frame from {sender.endpoint} for 0.2 s (no packet so far); is it running?"
    assert str(caught.value) == expected


def test_the_end_waits_until_all_has_left(pool: ThreadPoolExecutor) -> None:
    """48 MiB are more than the system buffers: `end` may not return before the reader reads."""
    frames = 12
    with (
        PushSender(FREE, queue_frames=2 * frames, timeout=PATIENCE) as sender,
        PullReceiver(sender.endpoint, queue_frames=1, timeout=PATIENCE) as receiver,
    ):
        for k in range(frames):
            sender.send(make_frame(k, shape=(1024, 1024)))
        hurry(sender, 0.3)
        done = pool.submit(sender.end)
        with pytest.raises(TimeoutError):
            done.result(1.0)
        assert len(drain(receiver)) == frames
        done.result(PATIENCE)


def test_a_reader_that_begins_late_gets_all_that_lies_in_the_systems_queues() -> None:
    """Nothing may go from a reader to a sender: coming after its end, it would reset the connection.

    Frames are sent for seconds, for a sign of life that ZeroMQ itself would ask for every few.
    """
    frames = 140
    with (
        PushSender(FREE, queue_frames=64, timeout=PATIENCE) as sender,
        PullReceiver(sender.endpoint, queue_frames=16, timeout=PATIENCE) as receiver,
    ):
        for k in range(frames):
            sender.send(make_frame(k, shape=(64, 64)))
            time.sleep(0.05)  # a detector's pace
        sender.end()
        assert len(drain(receiver)) == frames


def test_a_receiver_that_leaves_ends_the_wait_for_it(pool: ThreadPoolExecutor) -> None:
    with PushSender(FREE, queue_frames=20, timeout=PATIENCE) as sender:
        with PullReceiver(sender.endpoint, queue_frames=1):
            for k in range(12):
                sender.send(make_frame(k, shape=(1024, 1024)))
            done = pool.submit(sender.end)
            while not sender._line.socket.closed:  # the end is queued; from here on it waits for the receiver alone
                time.sleep(0.01)
        done.result(PATIENCE)


def test_strangers_at_the_port_are_not_taken_for_receivers(pool: ThreadPoolExecutor) -> None:
    """A port scanner that comes and goes must neither pass for a receiver nor hide the one that is there."""
    with PushSender(FREE, queue_frames=2, timeout=PATIENCE) as sender:
        port = int(sender.endpoint.rpartition(":")[2])
        with PullReceiver(sender.endpoint, queue_frames=1, timeout=PATIENCE) as receiver:
            greeting = pool.submit(receiver.receive)
            sender.send(make_frame(0))
            greeting.result()
            hurry(sender, 0.3)
            for rubbish in (b"", b"GET / HTTP/1.1\r\n\r\n" * 4):
                with socket.create_connection(("127.0.0.1", port)) as stranger:
                    stranger.sendall(rubbish)
            done = pool.submit(send_some, sender, 40, [])
            with pytest.raises(TimeoutError):  # held back, not given up
                done.result(1.0)
            assert [f.sequence for f in drain(receiver)] == list(range(1, 41))
            done.result()


def test_a_second_receiver_is_an_error(peer: Peer, pool: ThreadPoolExecutor) -> None:
    with PushSender(FREE, timeout=PATIENCE) as sender, PullReceiver(sender.endpoint) as first:
        first_frame = pool.submit(first.receive)
        sender.send(make_frame(0))
        first_frame.result()
        second = peer(zmq.PULL)
        with second.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED) as monitor:
            second.connect(sender.endpoint)
            assert monitor.recv_multipart()
            second.disable_monitor()
        with pytest.raises(UserError, match="second receiver has connected"):
            send_some(sender, 1000, [])


def test_a_receiver_that_comes_back_is_served(pool: ThreadPoolExecutor) -> None:
    """What was on its way to the one that left is gone, so that more than one frame may be needed."""
    with PushSender(FREE, queue_frames=1, timeout=PATIENCE) as sender:
        numbers = itertools.count()
        for _ in range(3):
            with PullReceiver(sender.endpoint, timeout=PATIENCE) as receiver:
                arriving = pool.submit(receiver.receive)
                while not futures.wait([arriving], 0.05).done:  # many at once would fill all queues
                    sender.send(make_frame(next(numbers), shape=(64, 64)))
                assert arriving.result() is not None


GOOD = bytes(timage.encode(make_frame(1)))
BAD = {
    "empty": b"",
    "rubbish": b"\xff" * 200,
    "truncated": GOOD[:-1],
    "one bit": GOOD[:-9] + bytes([GOOD[-9] ^ 4]) + GOOD[-8:],
    "nearly the end": b"end_datum",
    "a volume": bytes(timage.encode(Volume(data=np.zeros((1, 2, 2), np.float32)))),
}


@pytest.mark.parametrize("link", [PullReceiver, Subscriber])
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_a_bad_message_is_refused_and_the_next_one_served(
    link: type[PullReceiver | Subscriber],
    bad: bytes,
    peer: Peer,
    logged: Callable[[], list[dict[str, object]]],
) -> None:
    raw = peer(zmq.PUSH if link is PullReceiver else zmq.XPUB)
    port = raw.bind_to_random_port("tcp://127.0.0.1")
    with link(f"tcp://127.0.0.1:{port}", timeout=PATIENCE) as receiver:
        if link is Subscriber:
            assert raw.recv() == b"\1"
        for message in (timage.encode(make_frame(0)), bad, GOOD, timage.END_OF_SCAN):
            raw.send(message)
        assert [f.sequence for f in drain(receiver)] == [0, 1]
        assert (receiver.refused, receiver.lost) == (1, 0)
    (warning,) = logged()
    assert warning["event"] == "message refused"
    assert warning["level"] == "warning"
    assert warning["reason"]


def test_a_jump_is_a_loss(peer: Peer, logged: Callable[[], list[dict[str, object]]]) -> None:
    raw = peer(zmq.PUSH)
    port = raw.bind_to_random_port("tcp://127.0.0.1")
    with PullReceiver(f"tcp://127.0.0.1:{port}", timeout=PATIENCE) as receiver:
        for k in (0, 1, 4, 5, 7):
            raw.send(timage.encode(make_frame(k)))
        raw.send(timage.END_OF_SCAN)
        assert len(drain(receiver)) == 5
        assert receiver.lost == 3
    assert [(w["event"], w["missing"], w["lost"]) for w in logged()] == [
        ("packets lost", 2, 2),
        ("packets lost", 1, 3),
    ]


# Packet numbers --------------------------------------------------------------------------------------------


def count(numbers: list[int], *, numbered: bool, check: bool = False) -> int:
    counter = SequenceCounter(check_unnumbered=check)
    for number in numbers:
        counter.see(make_frame(number, numbered=numbered))
    counter.finish()
    return counter.lost


def upstream_order(total: int) -> list[int]:
    step = -(-total // 16)
    return [k for i in range(step) for k in range(i, total, step)]


@pytest.mark.parametrize(
    ("numbers", "lost"), [([0, 1, 2], 0), ([2, 3], 2), ([0, 5], 4), ([0, 1, 0, 1, 2], 0), ([0, 3, 0, 2], 3)]
)
def test_losses_of_numbered_frames(numbers: list[int], lost: int) -> None:
    assert count(numbers, numbered=True) == lost


def test_the_order_of_the_mini_apps_is_no_loss() -> None:
    order = upstream_order(201)
    assert order[:3] == [0, 13, 26]
    assert count(order, numbered=False) == 0
    assert count(order * 2, numbered=False, check=True) == 0


def test_what_never_came_of_a_mini_app_scan_counts_on_request() -> None:
    partial = [k for k in upstream_order(201) if k not in (5, 77, 130)]
    assert count(partial, numbered=False) == 0
    assert count(partial, numbered=False, check=True) == 3


# pubsub ----------------------------------------------------------------------------------------------------


def test_the_first_frame_waits_for_its_subscriber(pool: ThreadPoolExecutor) -> None:
    with Publisher(FREE, timeout=PATIENCE) as sender:
        done = pool.submit(lambda: [sender.send(make_frame(k)) for k in range(5)] and sender.end())
        with pytest.raises(TimeoutError):
            done.result(0.2)
        with Subscriber(sender.endpoint, timeout=PATIENCE) as receiver:
            assert [f.sequence for f in drain(receiver)] == [0, 1, 2, 3, 4]
        done.result()


def test_a_publisher_without_a_subscriber_times_out() -> None:
    with Publisher(FREE, timeout=0.2) as sender, pytest.raises(LinkTimeoutError) as caught:
        sender.send(make_frame())
    text = f"the subscriber asked for no frame from {sender.endpoint} for 0.2 s (no packet so far); is it running?"
    assert str(caught.value) == text


def test_a_publisher_waits_again_when_its_subscriber_has_left(pool: ThreadPoolExecutor) -> None:
    with Publisher(FREE, timeout=PATIENCE) as sender:
        with Subscriber(sender.endpoint, timeout=PATIENCE) as first:
            waiting = pool.submit(first.receive)
            sender.send(make_frame(0))
            waiting.result()
        while sender._topics:  # until it has heard of that
            sender._subscribed()
        feeding = pool.submit(lambda: [sender.send(make_frame(k)) for k in range(1, 4)] and sender.end())
        with Subscriber(sender.endpoint, timeout=PATIENCE) as second:
            assert [f.sequence for f in drain(second)] == [1, 2, 3]
            feeding.result()


def test_our_publisher_and_subscriber_shake_hands(pool: ThreadPoolExecutor) -> None:
    with Publisher(FREE, synch_endpoint=FREE, synch_count=3, timeout=PATIENCE) as sender:
        feeding = pool.submit(lambda: [sender.send(make_frame(k)) for k in range(5)] and sender.end())
        with Subscriber(
            sender.endpoint, synch_endpoint=sender.synch_endpoint, synch_count=3, timeout=PATIENCE
        ) as receiver:
            assert [f.sequence for f in drain(receiver)] == [0, 1, 2, 3, 4]
        feeding.result()


def test_our_publisher_serves_a_distributor_of_the_mini_apps(peer: Peer, pool: ThreadPoolExecutor) -> None:
    """SUB connects and subscribes; then one empty REQ for each of two workers; then frames."""
    with Publisher(FREE, synch_endpoint=FREE, synch_count=2, timeout=PATIENCE) as sender:
        feeding = pool.submit(lambda: (sender.send(make_frame(0)), sender.end()))
        subscriber, request = peer(zmq.SUB), peer(zmq.REQ)
        subscriber.connect(sender.endpoint)
        subscriber.subscribe(b"")
        request.connect(sender.synch_endpoint)
        request.send(b"")
        assert request.recv() == b""
        assert not subscriber.poll(200), "a frame came before the second worker was there"
        request.send(b"")
        assert request.recv() == b""
        assert timage.decode(subscriber.recv()).sequence == 0
        assert subscriber.recv() == b"end_data"
        feeding.result()


def test_our_subscriber_reads_an_acquisition_of_the_mini_apps(
    peer: Peer, pool: ThreadPoolExecutor, shared_data: Path
) -> None:
    """A plain PUB that starts as soon as the handshake is over, with buffers of the real serialiser."""
    folder = shared_data / "golden/timage"
    index = [e for e in json.loads((folder / "index.json").read_text()) if e["dtype"] == "float32"]
    publisher, synch = peer(zmq.PUB), peer(zmq.REP)
    data = f"tcp://127.0.0.1:{publisher.bind_to_random_port('tcp://127.0.0.1')}"
    asks = f"tcp://127.0.0.1:{synch.bind_to_random_port('tcp://127.0.0.1')}"

    with Subscriber(data, synch_endpoint=asks, synch_count=2, timeout=PATIENCE) as receiver:
        arriving = pool.submit(drain, receiver)
        for _ in range(2):
            assert synch.recv() == b""
            synch.send(b"")
        for entry in index:
            publisher.send((folder / entry["file"]).read_bytes())
        publisher.send(timage.END_OF_SCAN)
        frames = arriving.result(PATIENCE)
        assert (receiver.lost, receiver.refused) == (0, 0)
    assert [f.sequence for f in frames] == [e["seq"] for e in index]
    assert [f.pixels.shape for f in frames] == [tuple(e["dims"][1:]) for e in index]
    assert not any(f.numbered for f in frames)


def test_pixels_are_what_the_option_says(peer: Peer, shared_data: Path) -> None:
    raw = peer(zmq.XPUB)
    port = raw.bind_to_random_port("tcp://127.0.0.1")
    with Subscriber(f"tcp://127.0.0.1:{port}", pixel_type="int32", timeout=PATIENCE) as receiver:
        raw.recv()
        raw.send((shared_data / "golden/timage/projection.bin").read_bytes())
        assert receiver.receive().pixels.dtype == np.int32


def test_a_publisher_that_is_not_there_is_named(silent_port: str) -> None:
    with (
        Subscriber(silent_port, synch_endpoint=silent_port, timeout=0.2) as receiver,
        pytest.raises(LinkTimeoutError, match=f"no connection to {silent_port} for 0.2 s"),
    ):
        receiver.receive()


def test_synch_messages_that_are_not_answered_are_named(silent_port: str) -> None:
    with (
        Publisher(FREE, timeout=PATIENCE) as sender,
        Subscriber(sender.endpoint, synch_endpoint=silent_port, timeout=0.4) as receiver,
    ):
        while not receiver._line.connections(100):
            pass
        with pytest.raises(LinkTimeoutError, match=f"synch message 1 of 1 was not answered from {silent_port}"):
            receiver.receive()


def test_synch_messages_that_do_not_come_are_counted(peer: Peer) -> None:
    with Publisher(FREE, synch_endpoint=FREE, synch_count=2, timeout=0.4) as sender:
        request = peer(zmq.REQ)
        request.connect(sender.synch_endpoint)
        request.send(b"")
        while not sender._synch.socket.poll(100):
            pass
        with pytest.raises(LinkTimeoutError, match=f"1 of 2 synch messages came to {sender.synch_endpoint}"):
            sender.send(make_frame())


def test_a_volume_reaches_who_listens_and_waits_for_nobody(peer: Peer) -> None:
    volume = Volume(data=np.arange(24, dtype=np.float32).reshape(2, 3, 4), window=5, center=1.5, scan="tooth")
    with VolumePublisher(FREE) as publisher:
        for _ in range(100):
            publisher.publish(volume)
        subscriber = peer(zmq.SUB)
        subscriber.subscribe(b"")
        subscriber.connect(publisher.endpoint)
        while not subscriber.poll(10):
            publisher.publish(volume)
        got = timage.decode(subscriber.recv(), strict=True)
    assert isinstance(got, Volume)
    np.testing.assert_array_equal(got.data, volume.data)
    assert (got.window, got.center, got.scan) == (5, 1.5, "tooth")


# tmq -------------------------------------------------------------------------------------------------------

HEADER = struct.Struct("<QQQ")


def dealt(k: int, rows: int, columns: int) -> Frame:
    """A corrected projection whose every pixel says where it belongs."""
    pixels = 1000.0 * k + np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
    return make_frame(k, pixels=pixels, number=10 * k, angle=0.25 * k, center=2.5)


def distribute(distributor: TmqDistributor, frames: list[Frame]) -> int:
    count = distributor.workers()
    rows, columns = frames[0].pixels.shape
    distributor.start(rows, columns)
    for frame in frames:
        for sender, slab in zip(distributor.senders, partition_rows(rows, count), strict=True):
            sender.send(frame.slab(slab))
    for sender in distributor.senders:
        sender.end()
    return count


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_get_their_rows_of_every_projection(workers: int, pool: ThreadPoolExecutor) -> None:
    sent = [dealt(k, rows=7, columns=5) for k in range(20)]

    def work(rank: int) -> list[Frame]:
        with TmqWorker(distributor.endpoint, rank, workers, timeout=PATIENCE) as worker:
            got = drain(worker)
            assert worker.receive() is None
            assert (worker.lost, worker.refused) == (0, 0)
            return got

    with TmqDistributor(FREE, ports=workers, timeout=PATIENCE) as distributor:
        dealing = pool.submit(distribute, distributor, sent)
        results = [pool.submit(work, rank) for rank in reversed(range(workers))][::-1]
        assert dealing.result() == workers
        assert [s.refused for s in distributor.senders] == [0] * workers
    for slab, result in zip(partition_rows(7, workers), results, strict=True):
        got = result.result()
        assert [f.number for f in got] == [f.number for f in sent]
        assert [f.sequence for f in got] == list(range(20))
        assert [f.angle for f in got] == [f.angle for f in sent]
        for frame, whole in zip(got, sent, strict=True):
            assert (frame.rows, frame.center, frame.numbered) == (slab, 2.5, False)
            assert frame.kind is FrameKind.PROJECTION
            np.testing.assert_array_equal(frame.pixels, whole.slab(slab).pixels)


def test_ports_of_other_workers_are_opened_when_rank_0_has_asked(pool: ThreadPoolExecutor) -> None:
    with TmqDistributor(FREE, ports=2, timeout=PATIENCE) as reserved:
        base = reserved.endpoint
    with TmqDistributor(base, timeout=PATIENCE) as distributor, TmqWorker(base, 1, 2) as second:
        assert len(distributor.senders) == 1
        counting = pool.submit(distributor.workers)
        with TmqWorker(base, 0, 2, timeout=PATIENCE) as first:
            asked = [pool.submit(drain, worker) for worker in (second, first)]
            assert counting.result() == 2
            distributor.start(2, 3)
            for sender in distributor.senders:
                sender.end()
            assert [future.result() for future in asked] == [[], []]


def test_our_distributor_repeats_the_recorded_session(shared_data: Path, peer: Peer, pool: ThreadPoolExecutor) -> None:
    """The worker's side as recorded, with its rubbish padding; our replies agree byte for byte."""
    messages = json.loads((shared_data / "golden/tmq_worker.json").read_text())
    replies = [m for m in messages if m["dir"] == "distributor"]
    frames = [recorded_frame(m["hex"]) for m in replies if m["type"] == "DATA_REP"]
    assert len(frames) == 6

    with TmqDistributor(FREE, timeout=PATIENCE) as distributor:
        dealing = pool.submit(distribute, distributor, frames)
        worker = peer(zmq.REQ)
        worker.connect(distributor.endpoint)
        for message in messages:
            if message["dir"] == "worker":
                said = bytes.fromhex(message["hex"])
                body = struct.pack("<2I", *message["body"]) if message["body"] else b""
                worker.send((said + body).ljust(message["bytes"], b"\xa5"))
            else:
                reply, known = worker.recv(), message["hex"].removesuffix("...")
                assert len(reply) == message["bytes"], message["type"]
                assert reply.hex()[: len(known)] == known, message["type"]
        assert dealing.result(PATIENCE) == 1


def recorded_frame(said: str) -> Frame:
    known = bytes.fromhex(said.removesuffix("..."))
    projection, theta, center = struct.unpack_from("<iff", known, HEADER.size)
    pixels = np.full((2, 64), 0.5, np.float32)
    pixels[0, : (len(known) - 36) // 4] = np.frombuffer(known, "<f4", offset=36)
    return make_frame(pixels=pixels, number=projection, angle=theta, center=center)


def test_our_worker_understands_a_distributor_of_the_mini_apps(peer: Peer, pool: ThreadPoolExecutor) -> None:
    """The distributor's side as the APS mini-apps send it: 24, 40 and 36 + n bytes."""
    raw = peer(zmq.REP)
    base = raw.bind_to_random_port("tcp://127.0.0.1")
    pixels = np.arange(2 * 4, dtype="<f4").reshape(2, 4)

    with TmqWorker(f"tcp://127.0.0.1:{base - 1}", 1, 3, timeout=PATIENCE) as worker:
        arriving = pool.submit(drain, worker)
        assert raw.recv() == HEADER.pack(0, 0x01, 32) + struct.pack("<2I", 1, 3)
        raw.send(HEADER.pack(1, 0x02, 40) + struct.pack("<4I", 7, 3, 2, 4))
        for k in range(3):
            assert raw.recv() == HEADER.pack(2 * k + 2, 0x10, 24)
            body = struct.pack("<iff", 5 * k, 0.5 * k, 1.75)
            raw.send(HEADER.pack(2 * k + 3, 0x20, 36 + 32) + body + (pixels + k).tobytes())
        assert raw.recv() == HEADER.pack(8, 0x10, 24)
        raw.send(HEADER.pack(9, 0x00, 24))
        frames = arriving.result(PATIENCE)
        assert raw.recv() == HEADER.pack(10, 0x00, 24), "the worker's goodbye"
    assert [(f.number, f.angle, f.center) for f in frames] == [(0, 0, 1.75), (5, 0.5, 1.75), (10, 1, 1.75)]
    assert all(f.rows == RowRange(start=3, stop=5, total=7) for f in frames)
    for k, frame in enumerate(frames):
        np.testing.assert_array_equal(frame.pixels, pixels + k)


REFUSED = {
    "empty": b"",
    "rubbish": b"\xff" * 40,
    "unknown type": HEADER.pack(2, 0x77, 24),
    "wrong number": HEADER.pack(4, 0x10, 24),
    "goodbye too early": HEADER.pack(2, 0x00, 24),
    "rows asked again": HEADER.pack(2, 0x01, 32) + struct.pack("<2I", 0, 1),
}


@pytest.mark.parametrize("bad", REFUSED.values(), ids=REFUSED.keys())
def test_a_bad_request_is_refused_and_the_next_one_served(
    bad: bytes, peer: Peer, pool: ThreadPoolExecutor, logged: Callable[[], list[dict[str, object]]]
) -> None:
    with TmqDistributor(FREE, timeout=PATIENCE) as distributor:
        dealing = pool.submit(distribute, distributor, [dealt(0, rows=1, columns=3)])
        worker = peer(zmq.REQ)
        worker.connect(distributor.endpoint)
        ask(worker, HEADER.pack(0, 0x01, 32) + struct.pack("<2I", 0, 1), number=1)
        worker.send(bad)
        assert worker.recv() == b""
        ask(worker, HEADER.pack(2, 0x10, 24), number=3)
        ask(worker, HEADER.pack(4, 0x10, 24), number=5)
        worker.send(HEADER.pack(6, 0x00, 24))
        dealing.result(PATIENCE)
        assert distributor.senders[0].refused == 1
    (warning,) = logged()
    assert warning["event"] == "request refused"


def ask(worker: zmq.Socket, request: bytes, *, number: int) -> None:
    worker.send(request)
    assert HEADER.unpack_from(worker.recv())[0] == number


@pytest.mark.parametrize("identity", [(1, 2), (0, 0), (0, 100_000)])
def test_who_has_no_business_at_the_base_port_is_refused(
    identity: tuple[int, int], peer: Peer, pool: ThreadPoolExecutor
) -> None:
    with TmqDistributor(FREE, timeout=PATIENCE) as distributor:
        counting = pool.submit(distributor.workers)
        stranger = peer(zmq.REQ)
        stranger.connect(distributor.endpoint)
        stranger.send(HEADER.pack(0, 0x01, 32) + struct.pack("<2I", *identity))
        assert stranger.recv() == b""
        stranger.send(HEADER.pack(0, 0x01, 32) + struct.pack("<2I", 0, 1))
        assert counting.result(PATIENCE) == 1


def test_more_workers_than_rows_is_an_error(peer: Peer) -> None:
    with TmqDistributor(FREE, ports=3, timeout=PATIENCE) as distributor:
        for rank, sender in enumerate(distributor.senders):
            worker = peer(zmq.REQ)
            worker.connect(sender.endpoint)
            worker.send(HEADER.pack(0, 0x01, 32) + struct.pack("<2I", rank, 3))
        assert distributor.workers() == 3
        text = f"distributor at {distributor.endpoint}: 3 workers cannot share 2 rows: use 1 to 2 workers"
        with pytest.raises(UserError, match=text):
            distributor.start(2, 10)


def test_a_port_of_another_worker_in_use_is_named(peer: Peer) -> None:
    with TmqDistributor(FREE, ports=2) as other:
        taken = other.senders[1].endpoint
        other.senders[0].close()
        with TmqDistributor(other.senders[0].endpoint, timeout=PATIENCE) as distributor:
            worker = peer(zmq.REQ)
            worker.connect(distributor.endpoint)
            worker.send(HEADER.pack(0, 0x01, 32) + struct.pack("<2I", 0, 2))
            with pytest.raises(UserError, match=f"cannot listen at {taken}: the port is in use"):
                distributor.workers()


def test_a_slab_of_the_wrong_shape_is_refused(peer: Peer) -> None:
    with TmqDistributor(FREE, timeout=PATIENCE) as distributor:
        worker = peer(zmq.REQ)
        worker.connect(distributor.endpoint)
        worker.send(HEADER.pack(0, 0x01, 32) + struct.pack("<2I", 0, 1))
        distributor.workers()
        distributor.start(2, 3)
        with pytest.raises(ValueError, match=r"slabs of the shape \(2, 3\), not \(2, 4\)"):
            distributor.senders[0].send(make_frame(shape=(2, 4)))


def test_a_distributor_that_never_answers_is_named(silent_port: str) -> None:
    with TmqWorker(silent_port, 0, 2, timeout=0.2) as worker, pytest.raises(LinkTimeoutError) as caught:
        worker.receive()
    assert str(caught.value) == (
        f"no answer from the distributor at {silent_port} for 0.2 s (0 projections so far); "
        "is it running, and are all workers?"
    )


def test_workers_that_never_ask_are_named(peer: Peer) -> None:
    with TmqDistributor(FREE, ports=2, timeout=0.3) as distributor:
        with pytest.raises(LinkTimeoutError, match=f"worker 0 sent no InfoRequest to {distributor.endpoint}"):
            distributor.workers()
        worker = peer(zmq.REQ)
        worker.connect(distributor.endpoint)
        worker.send(HEADER.pack(0, 0x01, 32) + struct.pack("<2I", 0, 2))
        while not distributor.senders[0]._line.socket.poll(100):
            pass
        second = distributor.senders[1].endpoint
        with pytest.raises(LinkTimeoutError, match=f"worker 1 sent no InfoRequest to {second} for 0.3 s"):
            distributor.workers()


def test_a_stop_ends_the_waits_of_both(silent_port: str, pool: ThreadPoolExecutor) -> None:
    stop = StopFlag()
    with TmqDistributor(FREE, stop=stop) as distributor, TmqWorker(silent_port, 0, 1, stop=stop) as worker:
        waits = [pool.submit(distributor.workers), pool.submit(worker.receive)]
        stop.request("SIGTERM")
        for wait in waits:
            with pytest.raises(Stopped, match="SIGTERM"):
                wait.result(PATIENCE)


class RawDistributor:
    """Answers one worker's requests with bytes that the test gives, once its rows (1 x 3) are told."""

    def __init__(self, peer: Peer) -> None:
        self._socket = peer(zmq.REP)
        port = self._socket.bind_to_random_port("tcp://127.0.0.1")
        self.endpoint = f"tcp://127.0.0.1:{port}"
        self.info = HEADER.pack(1, 0x02, 40) + struct.pack("<4I", 1, 0, 1, 3)

    def serve(self, *replies: bytes) -> list[bytes]:
        requests = []
        for reply in (self.info, *replies):
            requests.append(self._socket.recv())
            self._socket.send(reply)
        return requests


def data_reply(number: int, rows: int = 1) -> bytes:
    body = struct.pack("<iff", 0, 0.5, 1.5) + np.zeros(3 * rows, "<f4").tobytes()
    return HEADER.pack(number, 0x20, HEADER.size + len(body)) + body


def start(pool: ThreadPoolExecutor, raw: RawDistributor, *replies: bytes) -> "Future[list[bytes]]":
    return pool.submit(raw.serve, *replies)


def test_a_bad_reply_is_refused_and_the_next_projection_asked_for(
    peer: Peer, pool: ThreadPoolExecutor, logged: Callable[[], list[dict[str, object]]]
) -> None:
    raw = RawDistributor(peer)
    bad = (data_reply(5)[:-1], data_reply(7, rows=2), HEADER.pack(9, 0x10, 24), b"\xff" * 60)
    serving = start(pool, raw, data_reply(3), *bad, data_reply(13), HEADER.pack(15, 0x00, 24))
    with TmqWorker(raw.endpoint, 0, 1, timeout=PATIENCE) as worker:
        assert len(drain(worker)) == 2
        assert worker.refused == worker.lost == 4
    assert [HEADER.unpack_from(r)[0] for r in serving.result()] == [0, 2, 4, 6, 8, 10, 12, 14]
    assert [w["event"] for w in logged()] == ["reply refused"] * 4


def test_a_reply_out_of_step_ends_the_worker(peer: Peer, pool: ThreadPoolExecutor) -> None:
    raw = RawDistributor(peer)
    serving = start(pool, raw, data_reply(5))
    with (
        TmqWorker(raw.endpoint, 0, 1, timeout=PATIENCE) as worker,
        pytest.raises(UserError, match=f"{raw.endpoint} sent message 5 where 3 was due"),
    ):
        worker.receive()
    serving.result()


@pytest.mark.parametrize(
    ("info", "text"),
    [
        (b"", "refused message 0"),
        (b"hello", "is no distributor"),
        (HEADER.pack(1, 0x00, 24), "had no rows for this worker"),
    ],
)
def test_a_worker_that_is_told_no_rows_ends(info: bytes, text: str, peer: Peer, pool: ThreadPoolExecutor) -> None:
    raw = RawDistributor(peer)
    raw.info = info
    serving = start(pool, raw)
    with (
        TmqWorker(raw.endpoint, 0, 1, timeout=PATIENCE) as worker,
        pytest.raises(UserError, match=f"{raw.endpoint} {text}"),
    ):
        worker.receive()
    serving.result()
