"""Acquisition: order, numbers, pace, options and the program, over real links where one is involved."""

import threading
from fractions import Fraction

import h5py
import numpy as np
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from aps_mini_apps.daq import program
from aps_mini_apps.daq.pacing import Pacer
from aps_mini_apps.daq.phantom import PhantomSource
from aps_mini_apps.daq.program import open_sender, open_source, send_scan
from aps_mini_apps.daq.random_source import RandomSource
from aps_mini_apps.daq.settings import DaqSettings
from aps_mini_apps.daq.stream import frame_count, frames, interleaved
from aps_mini_apps.frames import Frame, FrameKind
from aps_mini_apps.links import LinkTimeoutError, memory
from aps_mini_apps.links.pubsub import Publisher, Subscriber
from aps_mini_apps.links.push import PullReceiver, PushSender
from ministream.base.errors import UserError
from ministream.base.lifecycle import StopFlag, Stopped
from ministream.base.log import get_logger

FLATS, DARKS, PROJECTIONS = 3, 2, 20


def phantom(**changes):
    return PhantomSource(
        **{"columns": 24, "rows": 2, "projections": PROJECTIONS, "flats": FLATS, "darks": DARKS} | changes
    )


def load(*, environment=None, config=None, **options):
    return DaqSettings.load("daq", overrides=options, environment=environment, config=config)


# Order and numbers


@settings(deadline=None)
@given(st.integers(1, 2000))
def test_interleaved_order_is_upstreams(total):
    step = -(-total // 16)
    order = list(interleaved(total))
    assert sorted(order) == list(range(total))
    assert order == sorted(range(total), key=lambda index: (index % step, index))


def test_interleaved_order_of_the_tooth_starts_as_recorded_upstream():
    assert list(interleaved(201))[:3] == [0, 13, 26]  # 181 projections, 10 flats and 10 darks in one list


def test_frames_in_natural_order():
    source = phantom()
    stream = list(frames(source, scan="S1"))
    kinds = [FrameKind.FLAT] * FLATS + [FrameKind.DARK] * DARKS + [FrameKind.PROJECTION] * PROJECTIONS
    assert [frame.kind for frame in stream] == kinds
    assert [frame.sequence for frame in stream] == list(range(len(kinds)))
    assert [frame.number for frame in stream] == list(range(len(kinds)))
    assert [frame.resets for frame in stream] == [i in (0, FLATS) for i in range(len(kinds))]
    assert {frame.scan for frame in stream} == {"S1"}
    assert {frame.center for frame in stream} == {15.0}
    projections = stream[FLATS + DARKS :]
    np.testing.assert_array_equal([frame.angle for frame in projections], source.angles)
    assert all(
        np.array_equal(frame.pixels, pixels)
        for frame, pixels in zip(projections, source.projections(range(PROJECTIONS)), strict=True)
    )
    assert frame_count(source) == len(stream)


def test_interleaving_touches_projections_only():
    source = phantom()
    stream = list(frames(source, scan="", interleave=True, repeats=2))
    assert len(stream) == frame_count(source, repeats=2) == FLATS + DARKS + 2 * PROJECTIONS
    assert [frame.number for frame in stream[: FLATS + DARKS]] == list(range(FLATS + DARKS))
    assert [frame.sequence for frame in stream] == list(range(len(stream)))
    order = [frame.number - FLATS - DARKS for frame in stream[FLATS + DARKS :]]
    assert order == 2 * list(interleaved(PROJECTIONS))
    for frame, index in zip(stream[FLATS + DARKS :], order, strict=True):
        assert frame.angle == source.angles[index]
        np.testing.assert_array_equal(frame.pixels, next(source.projections([index])))


def test_pixels_are_converted_on_request():
    class Wide(PhantomSource):
        def projections(self, order):
            for index in order:
                yield np.array([[1e300, np.nan, float(index)]])

    source = Wide(columns=3, rows=1, projections=2, center_offset=0)
    stream = list(frames(source, scan="", dtype="float32"))
    assert {frame.pixels.dtype for frame in stream} == {np.dtype("float32")}
    np.testing.assert_array_equal(stream[-1].pixels, np.float32([[np.inf, np.nan, 1]]))


def test_frames_are_made_when_they_are_taken():
    taken = []

    class Watched(PhantomSource):
        def projections(self, order):
            for index, pixels in zip(order, super().projections(order), strict=True):
                taken.append(index)
                yield pixels

    stream = frames(Watched(columns=24, rows=1, projections=9, flats=1, darks=1), scan="")
    for _ in range(4):
        next(stream)
    assert taken == [0, 1]


def test_random_frames_can_be_corrected():
    source = RandomSource(columns=8, rows=3, projections=4, seed=2, flats=1, darks=1)
    assert source.angles[1] == pytest.approx(np.pi / 2)
    (flat,), (dark,), projections = source.flats(), source.darks(), list(source.projections(range(4)))
    assert {frame.shape for frame in (flat, dark, *projections)} == {(3, 8)}
    assert all(((dark < frame) & (frame < flat)).all() for frame in projections)
    assert len({frame.tobytes() for frame in projections}) == 4
    again = RandomSource(columns=8, rows=3, projections=4, seed=2)
    np.testing.assert_array_equal(next(again.projections([3])), projections[3])


# Pace


class Clock:
    """Time that passes only while someone sleeps; exact, so that a drift would show."""

    def __init__(self):
        self.now = Fraction(0)
        self.naps = []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.naps.append(seconds)
        self.now += Fraction(seconds)


def pace(interval, count, *, clock, work=0, **options):
    """Return when each of `count` projections left, if sending one takes `work` seconds."""
    pacer = Pacer(interval, clock=clock, sleep=clock.sleep, **options)
    frame = Frame(kind=FrameKind.PROJECTION, pixels=np.zeros((1, 1)))
    left = []
    for _ in range(count):
        pacer.wait(frame)
        left.append(clock.now)
        clock.now += Fraction(work)
    return left


def test_the_pace_does_not_drift():
    left = pace(Fraction(1, 10), 1000, clock=Clock(), work=Fraction(3, 100))
    assert left == [Fraction(k, 10) for k in range(1000)]


def test_the_first_projection_and_all_without_interval_leave_at_once():
    clock = Clock()
    assert pace(0, 5, clock=clock) == [0] * 5
    assert not clock.naps


def test_after_a_stall_the_schedule_is_caught_up():
    clock = Clock()
    pacer = Pacer(Fraction(1), clock=clock, sleep=clock.sleep)
    frame = Frame(kind=FrameKind.PROJECTION, pixels=np.zeros((1, 1)))
    left = []
    for k in range(6):
        pacer.wait(frame)
        left.append(clock.now)
        clock.now += Fraction(7, 2) if k == 0 else 0
    assert left == [0, Fraction(7, 2), Fraction(7, 2), Fraction(7, 2), 4, 5]


def test_a_pause_between_passes():
    left = pace(Fraction(1), 7, clock=Clock(), work=Fraction(1, 2), per_pass=3, pause=10)
    assert left == [0, 1, 2, Fraction(25, 2), Fraction(27, 2), Fraction(29, 2), 25]


def test_flats_and_darks_do_not_wait():
    clock = Clock()
    pacer = Pacer(5, clock=clock, sleep=clock.sleep)
    for kind in (FrameKind.FLAT, FrameKind.DARK, FrameKind.PROJECTION):
        pacer.wait(Frame(kind=kind, pixels=np.zeros((1, 1))))
    assert not clock.naps


def test_a_stop_is_seen_within_a_long_wait_and_before_any_frame():
    stop, clock = StopFlag(), Clock()

    def sleep(seconds):
        clock.sleep(seconds)
        if clock.now > 1:
            stop.request("enough")

    pacer = Pacer(60, stop=stop, clock=clock, sleep=sleep)
    frame = Frame(kind=FrameKind.PROJECTION, pixels=np.zeros((1, 1)))
    pacer.wait(frame)
    with pytest.raises(Stopped, match="enough"):
        pacer.wait(frame)
    assert clock.now < 2
    with pytest.raises(Stopped):
        pacer.wait(Frame(kind=FrameKind.FLAT, pixels=np.zeros((1, 1))))


# Options


def test_upstreams_options_and_their_defaults():
    defaults = load()
    assert (defaults.publisher_addr, defaults.publisher_hwm, defaults.synch_count) == ("tcp://*:50000", 0, 1)
    assert (defaults.repeats, defaults.iteration_sleep, defaults.projection_sleep) == (1, 0.0, 0.6)
    assert (defaults.first_row, defaults.rows) == (0, 0)
    given = load(
        mode="1",
        **{"--image_pv": "PV", "--publisher_addr": "tcp://0.0.0.0:50000", "--publisher-hwm": "7"},
        **{"--synch_addr": "tcp://0.0.0.0:50001", "--synch_count": "2", "--simulation_file": "a.h5"},
        **{"--d_iteration": "3", "--iteration_sleep": "1", "--projection_sleep": "0.25", "--beg_sinogram": "1"},
        **{"--num_sinograms": "2", "--num_sinogram_columns": "640", "--num_sinogram_projections": "181"},
    )
    assert (given.mode, given.image_pv, str(given.file)) == (1, "PV", "a.h5")
    assert (given.publisher_addr, given.publisher_hwm) == ("tcp://0.0.0.0:50000", 7)
    assert (given.synch_addr, given.synch_count) == ("tcp://0.0.0.0:50001", 2)
    assert (given.repeats, given.iteration_sleep, given.projection_sleep) == (3, 1.0, 0.25)
    assert (given.first_row, given.rows, given.columns, given.projections) == (1, 2, 640, 181)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "phantom"),
        ({"file": "a.h5"}, "hdf5"),
        ({"mode": 1, "file": "a.h5"}, "hdf5"),
        ({"mode": 2}, "random"),
        ({"mode": 2, "file": "a.h5"}, "random"),
        ({"mode": 0, "source": "phantom"}, "phantom"),
        ({"mode": 1, "source": "random"}, "random"),
    ],
)
def test_which_source(options, expected):
    assert load(**options).chosen_source() == expected


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": 0}, "not built yet"),
        ({"mode": 0, "file": "a.h5"}, "not built yet"),
        ({"mode": 1}, "--file"),
        ({"source": "hdf5"}, "--file"),
        ({"center": 24, "columns": 24}, "--center: centre 24 lies outside"),
        ({"center_offset": 200}, "outside the detector"),
    ],
)
def test_no_such_source(options, words):
    with pytest.raises(UserError, match=words), open_source(load(**options)):
        pass


@pytest.mark.parametrize("option", ["publisher_addr", "publisher_hwm", "synch_addr", "synch_count"])
def test_an_option_of_the_old_link_chooses_it(option):
    value = {"publisher_addr": "tcp://127.0.0.1:*", "publisher_hwm": "0", "synch_addr": "", "synch_count": "1"}[option]
    chosen = load(environment={f"MINISTREAM_DAQ_{option.upper()}": value})
    assert chosen.uses_pubsub()
    assert chosen.chosen_pixel_type() == "float32"
    assert load(pixel_type="native", **{option: value}).chosen_pixel_type() == "native"


def test_our_link_and_native_pixels_otherwise():
    assert not load(bind="tcp://127.0.0.1:*").uses_pubsub()
    assert load().chosen_pixel_type() == "native"
    assert load(pixel_type="float32").chosen_pixel_type() == "float32"


@pytest.mark.parametrize(
    ("options", "seconds"),
    [
        ({}, 0.6),
        ({"projection_sleep": 0}, 0.0),
        ({"frame_rate": 50}, 0.02),
        ({"frame_rate": 0}, 0.0),
        ({"frame_rate": 4, "projection_sleep": 3}, 0.25),
    ],
)
def test_which_pace(options, seconds):
    assert load(**options).interval() == seconds


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("mode", 3),
        ("repeats", 0),
        ("rows", -1),
        ("frame_rate", "nan"),
        ("span", 0),
        ("source", "detector"),
        ("seed", -1),
    ],
)
def test_values_out_of_range_are_refused(option, value):
    with pytest.raises(UserError, match=option):
        load(**{option: value})


def test_options_shape_the_phantom():
    options = load(rows=3, columns=40, projections=12, span=360, seed=4, photons=999, flats=2, darks=1, center_offset=1)
    with open_source(options) as source:
        same = PhantomSource(
            rows=3, columns=40, projections=12, span=2 * np.pi, seed=4, photons=999, flats=2, darks=1, center_offset=1
        )
        assert (source.center, source.flat_count, source.dark_count) == (21.0, 2, 1)
        np.testing.assert_array_equal(source.angles, same.angles)
        np.testing.assert_array_equal(next(source.projections([7])), next(same.projections([7])))


def test_options_shape_the_random_frames_and_name_the_axis():
    with open_source(load(mode=2, rows=3, columns=40, projections=12, center=17.5)) as source:
        assert (source.rows, source.columns, len(source.angles), source.center) == (3, 40, 12, 17.5)


def test_options_choose_rows_of_a_file(tmp_path):
    path = tmp_path / "scan.h5"
    data = np.random.default_rng(0).integers(1, 9, (5, 6, 4))
    with h5py.File(path, "w") as file:
        file["exchange1/data"], file["exchange1/data_white"], file["exchange1/data_dark"] = data, data, data
        file["exchange1/theta"] = np.arange(5)
    with open_source(load(file=path, exchange="exchange1", first_row=2, rows=3)) as source:
        np.testing.assert_array_equal(next(source.projections([1])), data[1, 2:5])
    with open_source(load(file=path, exchange="exchange1", first_row=4)) as source:
        assert source.rows == 2
    with (
        pytest.raises(UserError, match="rows 4 to 6 were asked for, but it has rows 0 to 5"),
        open_source(load(file=path, exchange="exchange1", first_row=4, rows=3)),
    ):
        pass


def test_options_without_effect_are_named():
    with capture_logs() as logs, open_source(load(columns=24, first_row=1, exchange="exchange1")):
        pass
    assert logs == [
        {
            "event": "options without effect on this source",
            "log_level": "warning",
            "source": "phantom",
            "options": "exchange,first_row",
        }
    ]


# Sending


def test_a_scan_through_memory():
    source = phantom()
    sender, receiver = memory.pair(100)
    with capture_logs() as logs:
        send_scan(frames(source, scan="S"), sender, Pacer(0), get_logger(), total=frame_count(source))
    received = list(iter(receiver.receive, None))
    assert [frame.sequence for frame in received] == list(range(25))
    assert all(frame.timestamp_ns > 1.7e18 for frame in received)
    assert logs[-1]["event"] == "scan ended"
    assert (logs[-1]["sent"], logs[-1]["total"], logs[-1]["projections"]) == (25, 25, PROJECTIONS)


def test_a_stop_ends_a_scan_without_the_end_mark():
    stop = StopFlag()
    sender, receiver = memory.pair(100, timeout=0.1)
    stop.request("SIGINT")
    with pytest.raises(Stopped):
        send_scan(frames(phantom(), scan=""), sender, Pacer(0, stop=stop), get_logger(), total=25)
    with pytest.raises(LinkTimeoutError):
        receiver.receive()


def run_main(monkeypatch, options, receive):
    """Run the program on a thread and `receive(endpoint)` beside it; return its exit code, frames and logs."""
    bound, arrived, opened = threading.Event(), [], []

    def watched(settings, stop):
        opened.append(open_sender(settings, stop))
        bound.set()
        return opened[0]

    monkeypatch.setattr(program, "open_sender", watched)
    monkeypatch.setattr(StopFlag, "install", lambda self: self)  # signals belong to the main thread
    codes = []
    with capture_logs() as logs:
        thread = threading.Thread(target=lambda: codes.append(program.main(load(**options))))
        thread.start()
        assert bound.wait(20)
        arrived = receive(opened[0])
        thread.join(20)
    assert not thread.is_alive()
    return codes, arrived, {entry["event"]: entry for entry in logs}


def take_all(receiver):
    """Copy what comes: the messages' memory goes with the receiver."""
    return [(frame, np.array(frame.pixels)) for frame in iter(receiver.receive, None)]


def test_the_program_on_our_link(monkeypatch):
    def receive(sender):
        assert isinstance(sender, PushSender)
        with PullReceiver(sender.endpoint, timeout=20) as receiver:
            return take_all(receiver)

    options = {"bind": "tcp://127.0.0.1:*", "columns": 24, "rows": 2, "projections": PROJECTIONS, "frame_rate": 0}
    codes, arrived, logs = run_main(monkeypatch, options | {"scan": "mine", "center": 11.5, "repeats": 2}, receive)
    assert codes == [0]
    expected = list(frames(PhantomSource(columns=24, rows=2, projections=PROJECTIONS), scan="mine", repeats=2))
    assert len(arrived) == len(expected) == 60
    for (frame, pixels), same in zip(arrived, expected, strict=True):
        assert (frame.kind, frame.sequence, frame.number) == (same.kind, same.sequence, same.number)
        assert (frame.angle, frame.scan, frame.center) == (same.angle, "mine", 11.5)
        assert pixels.dtype == np.uint16
        np.testing.assert_array_equal(pixels, same.pixels)
    assert logs["listening"]["endpoint"].startswith("tcp://127.0.0.1:")
    started = {key: logs["scan started"][key] for key in ("source", "rows", "columns", "projections", "repeats")}
    assert started == {"source": "phantom", "rows": 2, "columns": 24, "projections": PROJECTIONS, "repeats": 2}
    assert (logs["scan started"]["center"], logs["scan ended"]["sent"]) == (11.5, 60)


def test_the_program_on_the_old_link(monkeypatch):
    def receive(sender):
        assert isinstance(sender, Publisher)
        with Subscriber(sender.endpoint, synch_endpoint=sender.synch_endpoint, timeout=20) as receiver:
            return take_all(receiver)

    addresses = {"--publisher_addr": "tcp://127.0.0.1:*", "--synch_addr": "tcp://127.0.0.1:*"}
    size = {"--num_sinograms": "3", "--num_sinogram_columns": "8", "--num_sinogram_projections": "5"}
    codes, arrived, _logs = run_main(
        monkeypatch, {"--mode": "2", "--projection_sleep": "0"} | addresses | size, receive
    )
    assert codes == [0]
    assert len(arrived) == 25
    assert {pixels.dtype for _frame, pixels in arrived} == {np.dtype("uint16")}  # as the APS mini-apps'
    assert {pixels.shape for _frame, pixels in arrived} == {(3, 8)}


def test_an_address_in_use_is_a_user_error():
    context = zmq.Context.instance()
    with context.socket(zmq.PULL) as taken:
        port = taken.bind_to_random_port("tcp://127.0.0.1")
        with pytest.raises(UserError, match=str(port)):
            open_sender(load(bind=f"tcp://127.0.0.1:{port}"), StopFlag())
