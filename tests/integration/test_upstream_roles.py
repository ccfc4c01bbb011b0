"""The programs of the APS mini-apps can take either end's place: each is played here on raw sockets, as it behaves.

The actors share no code with the packages: they build and read messages with `struct` and the `flatbuffers`
package, and expect what the APS mini-apps' own sources expect.
"""

import itertools
import json
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import flatbuffers
import h5py
import numpy as np
import pytest
import zmq
from flatbuffers import number_types
from flatbuffers.table import Table
from zmq.utils.monitor import recv_monitor_message

from aps_mini_apps.batch import reconstruct_frames
from aps_mini_apps.frames import Frame, FrameKind
from aps_mini_apps.sirt.projectors import make_projector
from tests.folding import sirt
from tests.integration.conftest import Program, Start

FREE = "tcp://127.0.0.1:*"
PATIENCE = 30.0
"""Seconds after which a wait that should have ended fails its test."""

Peer = Callable[[int], zmq.Socket]


@pytest.fixture
def peer() -> Iterator[Peer]:
    """Makes the actors' sockets."""
    with ExitStack() as sockets, zmq.Context() as context:
        context.linger = context.rcvtimeo = context.sndtimeo = round(1000 * PATIENCE)
        yield lambda kind: sockets.enter_context(context.socket(kind))
        context.destroy(linger=0)


@pytest.fixture
def pool(peer: Peer) -> Iterator[ThreadPoolExecutor]:  # noqa: ARG001 - its threads end before the sockets close
    with ThreadPoolExecutor(4) as executor:
        yield executor


def bound(socket: zmq.Socket) -> str:
    """Bind to a free port and return its endpoint."""
    socket.bind(FREE)
    return socket.getsockopt_string(zmq.LAST_ENDPOINT)


# --- TImage, by the seven slots of upstream's schema

PROJECTION, WHITE, DARK, WHITE_RESET, DARK_RESET = range(1, 6)
VOLUME = 0


class Image(NamedTuple):
    """The seven slots, the pixels as float32 (z, y, x)."""

    seq: int
    rotation: float
    center: float
    unique_id: int
    itype: int
    pixels: np.ndarray


def serialize(pixels: np.ndarray, *, seq: int, itype: int, rotation: float, center: float) -> bytes:
    """Build a frame's message in the order of upstream's serialiser; fields that are zero stay absent."""
    builder = flatbuffers.Builder(0)
    tdata = builder.CreateByteVector(pixels.astype("<f4").tobytes())
    builder.StartObject(7)
    builder.Prep(4, 12)
    for size in (pixels.shape[1], pixels.shape[0], 1):
        builder.PrependInt32(size)
    builder.PrependStructSlot(1, builder.Offset(), 0)
    builder.PrependFloat32Slot(2, rotation, 0.0)
    builder.PrependFloat32Slot(3, center, 0.0)
    builder.PrependInt32Slot(4, seq, 0)  # a frame's uniqueId is its place in the file, as its seq is
    builder.PrependInt8Slot(5, itype, 0)
    builder.PrependUOffsetTRelativeSlot(6, tdata, 0)
    builder.PrependInt32Slot(0, seq, 0)
    builder.Finish(builder.EndObject())
    return bytes(builder.Output())


def deserialize(message: bytes) -> Image:
    """Read the seven slots alone, as classes that were generated from upstream's schema do."""
    table = Table(message, flatbuffers.encode.Get(flatbuffers.packer.uoffset, message, 0))

    def number(slot: int, flags: type, inside: int = 0) -> float:
        offset = table.Offset(4 + 2 * slot)
        return table.Get(flags, table.Pos + offset + inside) if offset else 0

    shape = [number(1, number_types.Int32Flags, inside) for inside in (0, 4, 8)]
    tdata = table.GetVectorAsNumpy(number_types.Uint8Flags, table.Offset(4 + 2 * 6))
    return Image(
        seq=number(0, number_types.Int32Flags),
        rotation=number(2, number_types.Float32Flags),
        center=number(3, number_types.Float32Flags),
        unique_id=number(4, number_types.Int32Flags),
        itype=number(5, number_types.Int8Flags),
        pixels=tdata.view("<f4").reshape(shape),
    )


# --- TMQ

INFO_REQ, INFO_REP, DATA_REQ, DATA_REP, FIN_REP = 0x01, 0x02, 0x10, 0x20, 0x00
HEADER = struct.Struct("<3Q")
INFO_REQ_BODY, INFO_REP_BODY, DATA_BODY = struct.Struct("<2I"), struct.Struct("<4I"), struct.Struct("<i2f")
RUBBISH = b"\xde\xad\xbe\xef\xff\xff\xff\xff"
"""What the C++ worker sends after the end of its messages: its structure's last member, never set."""


class Delivery(NamedTuple):
    """One DATA_REP."""

    projection_id: int
    theta: float
    center: float
    pixels: np.ndarray


class Request(NamedTuple):
    """What a worker sent."""

    number: int
    kind: int
    body: tuple[int, ...]


def padded(number: int, kind: int, body: bytes = b"") -> bytes:
    return HEADER.pack(number, kind, HEADER.size + len(body) + len(RUBBISH)) + body + RUBBISH


def take_reply(socket: zmq.Socket, due: int) -> tuple[int, bytes]:
    """Receive a reply as the C++ worker does: it allocates `size` bytes and copies the whole message there."""
    message = socket.recv()
    number, kind, size = HEADER.unpack_from(message)
    assert number == due
    assert size >= len(message)
    return kind, message[HEADER.size :]


def play_worker(socket: zmq.Socket, rank: int, workers: int) -> tuple[tuple[int, ...], list[Delivery]]:
    """Be worker `rank`: return what it was told of its rows, and what it got."""
    socket.send(padded(0, INFO_REQ, INFO_REQ_BODY.pack(rank, workers)))
    kind, body = take_reply(socket, due=1)
    assert (kind, len(body)) == (INFO_REP, INFO_REP_BODY.size)
    info = INFO_REP_BODY.unpack(body)
    rows, columns = info[2:]
    deliveries = []
    for number in itertools.count(2, 2):
        socket.send(padded(number, DATA_REQ))
        kind, body = take_reply(socket, due=number + 1)
        if kind == FIN_REP:
            assert body == b""
            socket.send(padded(number + 2, FIN_REP))
            socket.close()  # the worker waits for nothing
            return info, deliveries
        assert (kind, len(body)) == (DATA_REP, DATA_BODY.size + 4 * rows * columns)
        pixels = np.frombuffer(body, "<f4", offset=DATA_BODY.size).reshape(rows, columns)
        deliveries.append(Delivery(*DATA_BODY.unpack_from(body), pixels))
    raise AssertionError


def play_distributor(socket: zmq.Socket, info: Sequence[int], deliveries: Sequence[Delivery]) -> list[Request]:
    """Be the distributor of one worker: return what it asked."""
    replies = [(INFO_REP, INFO_REP_BODY.pack(*info))]
    replies += [(DATA_REP, DATA_BODY.pack(*d[:3]) + d.pixels.astype("<f4").tobytes()) for d in deliveries]
    replies += [(FIN_REP, b"")]
    requests = []
    for number, (kind, body) in zip(itertools.count(1, 2), replies, strict=False):
        requests.append(take_request(socket))
        socket.send(HEADER.pack(number, kind, HEADER.size + len(body)) + body)
    requests.append(take_request(socket))
    return requests


def take_request(socket: zmq.Socket) -> Request:
    """Receive a request as upstream's distributor does, which allocates and copies as its worker does."""
    message = socket.recv()
    number, kind, size = HEADER.unpack_from(message)
    assert size >= len(message)
    return Request(number, kind, INFO_REQ_BODY.unpack_from(message, HEADER.size) if kind == INFO_REQ else ())


def session(projections: int) -> list[Request]:
    """Return what a lone worker asks in the course of a scan."""
    data = [Request(number, DATA_REQ, ()) for number in range(2, 2 * projections + 3, 2)]
    return [Request(0, INFO_REQ, (0, 1)), *data, Request(2 * projections + 4, FIN_REP, ())]


# --- upstream's acquisition -> our distributor -> upstream's workers

DETECTOR_ROWS, ROWS, COLUMNS, PROJECTIONS = 7, 5, 32, 29
CENTER = 14.75
DEAD = (1, 10)
"""Row and column of a pixel that shows no light."""


@dataclass
class Scan:
    """The list that upstream's acquisition sends from: flats, darks, projections; float32 counts."""

    flats: np.ndarray
    darks: np.ndarray
    projections: np.ndarray
    degrees: np.ndarray

    @classmethod
    def make(cls, flats: int, darks: int) -> "Scan":
        """Every flat and dark differs from the others, so that a mean tells which of them went into it."""
        random = np.random.default_rng(1)
        shape = (DETECTOR_ROWS, COLUMNS)
        beam, offset = random.uniform(5000, 9000, shape), random.uniform(80, 120, shape)
        integrals = random.uniform(0.0, 1.5, (PROJECTIONS, *shape))
        images = [
            offset + beam * (1 + 0.05 * np.arange(flats)[:, None, None]),
            offset + 30.0 * np.arange(darks)[:, None, None],
            offset + beam * np.exp(-integrals),
        ]
        for series in images:
            series[:, *DEAD] = 100.0
        degrees = np.linspace(-45.0, 405.0, PROJECTIONS)
        return cls(*(series.astype(np.float32) for series in images), degrees.astype(np.float32))

    @property
    def first_projection(self) -> int:
        return len(self.flats) + len(self.darks)

    def order(self, iterations: int) -> list[int]:
        """Return the interleaved order, flats and darks among the projections, again for each iteration."""
        total = self.first_projection + PROJECTIONS
        n = math.ceil(total / 16)
        return [index for i in range(n) for index in range(i, total, n)] * iterations

    def messages(self) -> list[bytes]:
        series = [
            (WHITE_RESET, WHITE, self.flats),
            (DARK_RESET, DARK, self.darks),
            (PROJECTION,) * 2 + (self.projections,),
        ]
        frames = [
            (first if k == 0 else next_, image) for first, next_, images in series for k, image in enumerate(images)
        ]
        rotations = [0.0] * self.first_projection + self.degrees.tolist()
        return [
            serialize(image, seq=seq, itype=itype, rotation=rotation, center=CENTER)
            for seq, ((itype, image), rotation) in enumerate(zip(frames, rotations, strict=True))
        ]

    def corrected(self, order: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the seq and the line integrals of each projection, in the order in which they leave.

        Each is corrected with the flats and darks that had arrived since the last reset of their kind; those
        that came before there was one of both leave when there is.
        """
        flats: list[np.ndarray] = []
        darks: list[np.ndarray] = []
        waiting: list[int] = []
        for index in order:
            place = index - len(self.flats)
            if place < 0:
                flats = [*(flats if index else []), self.flats[index]]
            elif index < self.first_projection:
                darks = [*(darks if place else []), self.darks[place]]
            else:
                waiting.append(index)
            while flats and darks and waiting:
                ready = waiting.pop(0)
                yield ready, line_integrals(self.projections[ready - self.first_projection], flats, darks)
        assert not waiting


def line_integrals(projection: np.ndarray, flats: list[np.ndarray], darks: list[np.ndarray]) -> np.ndarray:
    flat, dark = np.mean(flats, axis=0, dtype=float), np.mean(darks, axis=0, dtype=float)
    light = flat - dark
    light[DEAD] = 1.0
    integrals = -np.log(np.maximum(projection - dark, 1e-9) / light)
    row, column = DEAD
    integrals[DEAD] = (integrals[row, column - 1] + integrals[row, column + 1]) / 2
    return integrals


def play_acquisition(publisher: zmq.Socket, synch: zmq.Socket, messages: list[bytes], workers: int) -> None:
    """Be upstream's acquisition, which publishes as soon as `workers` synch messages have come."""
    for _ in range(workers):
        assert synch.recv() == b""
        synch.send(b"")
    for message in messages:
        publisher.send(message)
    publisher.send(b"end_data")


@pytest.mark.parametrize(
    ("flats", "darks", "iterations", "workers"),
    [
        pytest.param(4, 5, 1, 1, id="the reset of the darks comes after one of them"),
        pytest.param(2, 1, 1, 2, id="most projections come before the dark"),
        pytest.param(4, 5, 2, 2, id="all comes twice"),
    ],
)
def test_upstreams_acquisition_before_and_its_workers_behind_our_distributor(
    start: Start, peer: Peer, pool: ThreadPoolExecutor, flats: int, darks: int, iterations: int, workers: int
) -> None:
    scan = Scan.make(flats, darks)
    order = scan.order(iterations)
    publisher, synch = peer(zmq.PUB), peer(zmq.REP)
    publisher.set_hwm(0)
    dist = start(
        *("dist", "--data_source_addr", bound(publisher), "--data_source_synch_addr", bound(synch)),
        *("--cast_to_float32", "--normalize", "--remove_invalids", "--mlog", "--degree_to_radian", "--check_seq"),
        *("--my_distributor_addr", FREE, "--workers", workers),  # upstream gives a port: here free ones are looked for
        *("--beg_sinogram", 0, "--num_sinograms", ROWS, "--num_columns", COLUMNS),
    )
    host, _, base = dist.wait_for("listening")["endpoint"].rpartition(":")
    messages = scan.messages()
    acquisition = pool.submit(play_acquisition, publisher, synch, [messages[index] for index in order], workers)
    requesters = [peer(zmq.REQ) for _ in range(workers)]
    for rank, socket in enumerate(requesters):
        socket.connect(f"{host}:{int(base) + rank}")
    playing = [pool.submit(play_worker, socket, rank, workers) for rank, socket in enumerate(requesters)]
    played = [worker.result(PATIENCE) for worker in playing]
    acquisition.result(PATIENCE)
    assert dist.finish() == 0, dist.errors

    slabs = {1: [(ROWS, 0, 5, COLUMNS)], 2: [(ROWS, 0, 3, COLUMNS), (ROWS, 3, 2, COLUMNS)]}[workers]
    assert [info for info, _ in played] == slabs
    expected = list(scan.corrected(order))
    for (_, first, rows, _), (_, deliveries) in zip(slabs, played, strict=True):
        for (index, integrals), delivery in zip(expected, deliveries, strict=True):
            assert (delivery.projection_id, delivery.center) == (index, CENTER)
            assert_angle(delivery.theta, scan.degrees[index - scan.first_projection])
            np.testing.assert_allclose(delivery.pixels, integrals[first : first + rows], rtol=0, atol=1e-5)
    ended = dist.last("scan ended")
    assert (ended["received"], ended["sent"]) == (len(order), len(expected))
    assert (ended["lost"], ended["refused"]) == (0, 0)
    assert ended["invalid_pixels"] == len(expected)  # the dead pixel, and no other
    assert [event for event in dist.events if event["level"] != "info"] == []


def assert_angle(theta: float, degrees: float) -> None:
    """Upstream's worker is right only for angles in [0, 2 pi), judged as float32."""
    assert 0.0 <= theta < np.float32(2 * math.pi)
    assert math.remainder(theta - math.radians(degrees), 2 * math.pi) == pytest.approx(0.0, abs=1e-6)


# --- upstream's distributor -> our worker -> who looks at the reconstruction

GOLDEN = "golden/tmq_worker.json"
WINDOW = ("--window-length", 4, "--window-step", 2, "--write-freq", 1)
WINDOWS = [slice(0, 2), slice(0, 4), slice(2, 6), slice(4, 6)]
"""What upstream's worker makes of six projections."""


def make_deliveries(center: float) -> list[Delivery]:
    random = np.random.default_rng(2)
    return [
        Delivery(k + 9, float(np.float32(math.pi * k / 6)), center, random.uniform(0, 2, (2, 24)).astype(np.float32))
        for k in range(6)
    ]


def reconstruct(deliveries: Sequence[Delivery], center: float) -> np.ndarray:
    """Reconstruct what a worker got by the library."""
    frames = [
        Frame(kind=FrameKind.PROJECTION, pixels=d.pixels, number=d.projection_id, angle=d.theta) for d in deliveries
    ]
    return reconstruct_frames(frames, iterations=1, length=4, step=2, center=center)


def fold_windows(deliveries: Sequence[Delivery], center: float) -> list[np.ndarray]:
    """Return the volume after one update on each of `WINDOWS`."""
    projector = make_projector("numba", *deliveries[0].pixels.shape)
    volume, after = projector.new_volume(), []
    for window in WINDOWS:
        geometry = projector.geometry(np.array([d.theta for d in deliveries[window]]), center)
        sinogram = projector.stack([projector.measure(d.pixels) for d in deliveries[window]])
        sirt(projector, volume, sinogram, geometry, iterations=1)
        after.append(projector.export_volume(volume))
    return after


def start_sirt(start: Start, distributor: str, folder: Path, *options: object) -> Program:
    """Start our worker by the options of upstream's."""
    return start(
        *("sirt", "--dest-host", "127.0.0.1", "--dest-port", distributor.rpartition(":")[2], "--pub-addr", FREE),
        *(*WINDOW, "--window-iter", 1, "--recon-output-dir", folder, "-t", 1, *options),
    )


def written(folder: Path) -> list[np.ndarray]:
    """Return the volumes written: one for each window, and nothing beside them."""
    assert sorted(path.name for path in folder.iterdir()) == [f"{k:06d}-recon.h5" for k in range(len(WINDOWS))]
    volumes = []
    for path in sorted(folder.iterdir()):
        with h5py.File(path) as file:
            volumes.append(file["data"][()])
    return volumes


def test_upstreams_distributor_before_our_worker(
    start: Start, peer: Peer, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    deliveries = make_deliveries(center=12.0)
    distributor = peer(zmq.REP)
    folder = tmp_path / "out"
    worker = start_sirt(start, bound(distributor), folder, "-c", 13.25)
    playing = pool.submit(play_distributor, distributor, (2, 0, 2, 24), deliveries)
    assert worker.finish() == 0, worker.errors
    assert playing.result(PATIENCE) == session(len(deliveries))
    volumes = written(folder)
    np.testing.assert_array_equal(volumes, fold_windows(deliveries, center=13.25))
    np.testing.assert_array_equal(volumes[-1], reconstruct(deliveries, center=13.25))
    with h5py.File(folder / f"{len(WINDOWS) - 1:06d}-recon.h5") as file:
        about = dict(file.attrs)
    assert (about["state"], about["angles_seen"], about["frames_lost"]) == ("complete", 6, 0)
    assert about["center"] == 13.25


def test_our_worker_asks_as_upstreams_did_when_it_was_recorded(
    start: Start, peer: Peer, pool: ThreadPoolExecutor, tmp_path: Path, shared_data: Path
) -> None:
    recorded = json.loads((shared_data / GOLDEN).read_text())
    distributor = peer(zmq.REP)

    def replay() -> list[Request]:
        requests = []
        for message in recorded:
            if message["dir"] == "worker":
                requests.append(take_request(distributor))
            else:  # of the pixels only the first were recorded
                distributor.send(bytes.fromhex(message["hex"].rstrip(".")).ljust(message["bytes"], b"\0"))
        return requests

    worker = start_sirt(start, bound(distributor), tmp_path / "out")
    playing = pool.submit(replay)
    assert worker.finish() == 0, worker.errors
    kinds = {"DATAINFO_REQ": INFO_REQ, "DATA_REQ": DATA_REQ, "FIN_REP": FIN_REP}
    theirs = [
        Request(message["seq"], kinds[message["type"]], tuple(message["body"] or ()))
        for message in recorded
        if message["dir"] == "worker"
    ]
    assert playing.result(PATIENCE) == theirs == session(6)
    assert {volume.shape for volume in written(tmp_path / "out")} == {(2, 64, 64)}


def test_a_published_reconstruction_is_read_by_upstreams_schema(
    start: Start, peer: Peer, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    deliveries = make_deliveries(center=11.5)
    distributor, viewer = peer(zmq.REP), peer(zmq.SUB)
    worker = start_sirt(start, bound(distributor), tmp_path / "out", "--pub-freq", 1)
    subscribe(viewer, worker.wait_for("waiting for projections")["published"])
    playing = pool.submit(play_distributor, distributor, (2, 0, 2, 24), deliveries)
    images = [deserialize(viewer.recv()) for _ in WINDOWS]
    assert worker.finish() == 0, worker.errors
    playing.result(PATIENCE)
    assert [(image.seq, image.itype, image.rotation, image.center) for image in images] == [
        (window, VOLUME, 0.0, 11.5) for window in range(len(WINDOWS))
    ]
    for image, volume in zip(images, written(tmp_path / "out"), strict=True):
        assert image.pixels.shape == (2, 24, 24)
        np.testing.assert_array_equal(image.pixels, volume)
    np.testing.assert_array_equal(images[-1].pixels, reconstruct(deliveries, center=11.5))


def subscribe(viewer: zmq.Socket, endpoint: str) -> None:
    """Connect, and wait until the subscription is on its way: a publisher of images waits for nobody."""
    viewer.subscribe(b"")
    with viewer.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED) as monitor:
        monitor.rcvtimeo = round(1000 * PATIENCE)
        viewer.connect(endpoint)
        recv_monitor_message(monitor)
        viewer.disable_monitor()


# --- our acquisition -> upstream's distributor


def test_our_acquisition_before_upstreams_distributor(start: Start, peer: Peer, tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    data, white, dark = (random.integers(0, 65_000, (count, 4, 9), np.uint16) for count in (5, 3, 2))
    theta = np.array([-0.5, 0.0, 90.25, 360.0, 719.5])
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["exchange/data"], file["exchange/theta"] = data, theta
        file["exchange/data_white"], file["exchange/data_dark"] = white, dark
    daq = start(
        *("daq", "--mode", 1, "--simulation_file", tmp_path / "scan.h5", "--d_iteration", 1, "--projection_sleep", 0),
        *("--publisher_addr", FREE, "--synch_addr", FREE, "--synch_count", 2),
    )
    listening = daq.wait_for("listening")
    subscriber, synch = peer(zmq.SUB), peer(zmq.REQ)
    subscriber.connect(listening["endpoint"])
    subscriber.setsockopt(zmq.SUBSCRIBE, b"")
    synch.connect(listening["synch"])
    for worker in range(2):
        assert not subscriber.poll(50), f"a frame came after {worker} of 2 synch messages"
        synch.send(b"")
        assert synch.recv() == b""
    messages = list(iter(subscriber.recv, b"end_data"))
    assert daq.finish() == 0, daq.errors

    images = [deserialize(message) for message in messages]
    assert [image.itype for image in images] == [WHITE_RESET, WHITE, WHITE, DARK_RESET, DARK] + [PROJECTION] * 5
    for slot in ("seq", "unique_id"):
        assert [getattr(image, slot) for image in images] == list(range(10))
    assert [image.rotation for image in images] == [0.0] * 5 + [359.5, 0.0, 90.25, 0.0, 359.5]
    assert {image.center for image in images} == {4.5}
    for image, expected in zip(images, [*white, *dark, *data], strict=True):
        assert image.pixels.shape == (1, 4, 9)
        np.testing.assert_array_equal(image.pixels[0], expected)
