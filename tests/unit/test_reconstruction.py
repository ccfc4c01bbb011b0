"""A slab's reconstruction: windows folded in, the axis from everywhere it may come from."""

from dataclasses import replace

import numpy as np
import pytest

from aps_mini_apps import batch
from aps_mini_apps.daq.phantom import PhantomSource
from aps_mini_apps.frames import Frame, FrameKind
from aps_mini_apps.sirt.projectors import make_projector
from aps_mini_apps.sirt.projectors._footprint import in_circle
from aps_mini_apps.sirt.reconstruction import AxisSearch, Reconstruction, Update
from tests.yardstick import phantom

COLUMNS, ROWS, PROJECTIONS = 48, 3, 60


@pytest.fixture(scope="module")
def scan() -> list[Frame]:
    source = PhantomSource(columns=COLUMNS, rows=ROWS, projections=PROJECTIONS, stripes=0, center_offset=3.0)
    return [replace(frame, center=None) for frame in batch.projections(source)]


def make(**options: object) -> Reconstruction:
    options = {"length": 8, "center": 27.0} | options
    return Reconstruction(make_projector("numba", ROWS, COLUMNS), **options)  # type: ignore[arg-type]


def test_every_window_is_reported(scan: list[Frame]) -> None:
    reconstruction = make(length=8, step=3)
    updates = list(reconstruction.run(scan[:10]))
    assert [u.projections for u in updates] == [3, 6, 9, 6, 3]
    assert [u.window for u in updates] == list(range(5))
    assert [u.newest for u in updates] == [scan[i].number for i in (2, 5, 8, 9, 9)]
    assert updates[0].misfit == pytest.approx(1.0, abs=1e-5)  # from zero nothing is explained yet
    assert all(0 < u.misfit < 1 for u in updates[1:])
    assert len(reconstruction.seen) == 10


def test_change_is_the_rms_change_of_a_voxel(scan: list[Frame]) -> None:
    reconstruction = make(length=60, step=60)
    (update,) = reconstruction.run(scan)
    assert update.change == pytest.approx(float(np.sqrt(np.mean(reconstruction.volume() ** 2))), rel=1e-5)


def test_more_iterations_explain_more(scan: list[Frame]) -> None:
    misfits = [next(make(length=60, step=60, iterations=n).run(scan)).misfit for n in (1, 5, 20)]
    assert misfits[0] > misfits[1] > misfits[2]


def test_no_iteration_is_refused() -> None:
    with pytest.raises(ValueError, match="iterations"):
        make(iterations=0)


def test_both_back_ends_make_the_same_volume(scan: list[Frame]) -> None:
    volumes = []
    for backend in ("numba", "numpy"):
        projector = make_projector(backend, ROWS, COLUMNS)  # type: ignore[arg-type]
        reconstruction = Reconstruction(projector, length=8, step=3, iterations=2, center=27.0)
        list(reconstruction.run(scan))
        volumes.append(reconstruction.volume())
    np.testing.assert_allclose(*volumes, rtol=0, atol=1e-4 * np.ptp(volumes[1]))


@pytest.mark.parametrize(("given", "carried", "used"), [(None, None, 24.0), (None, 26.5, 26.5), (25.0, 26.5, 25.0)])
def test_the_axis_is_given_or_the_stream_s_or_the_middle(
    scan: list[Frame], given: float | None, carried: float | None, used: float
) -> None:
    updates = list(make(center=given).run(replace(frame, center=carried) for frame in scan[:3]))
    assert {u.center for u in updates} == {used}


@pytest.mark.parametrize("center", [-1.0, 48.0, 1e9])
def test_an_axis_outside_the_detector_is_refused(scan: list[Frame], center: float) -> None:
    with pytest.raises(ValueError, match=r"centre .* lies outside the detector: give one between 0 and 48"):
        make(center=center)
    with pytest.raises(ValueError, match="lies outside the detector"):
        list(make(center=None).run([replace(scan[0], center=center)]))


class Search:
    """An axis search and what it announced."""

    def __init__(self, history: int = 10**9) -> None:
        self.announced: list[tuple[float, int]] = []
        self.search = AxisSearch(history, lambda center, held: self.announced.append((center, held)))


def test_a_live_search_restarts_and_ends_as_if_the_axis_had_been_known(scan: list[Frame]) -> None:
    search = Search()
    live = make(center=None, search=search.search)
    updates: list[Update] = list(live.run(scan))
    ((found, held),) = search.announced
    assert found == pytest.approx(27.0, abs=0.3)
    known = make(center=found)
    steps = list(known.run(scan))
    np.testing.assert_array_equal(live.volume(), known.volume())
    restart = next(i for i, u in enumerate(updates) if u.center == found)
    assert held == restart  # one window a projection before, all of them again after
    assert [u.window for u in updates] == list(range(restart + len(steps)))


def test_a_search_that_confirms_the_axis_does_not_restart(scan: list[Frame]) -> None:
    search = Search()
    updates = list(make(center=27.0, search=search.search).run(scan))
    assert search.announced == []
    assert {u.center for u in updates} == {27.0}


def test_a_scan_without_opposite_projections_keeps_the_axis(scan: list[Frame]) -> None:
    search = Search()
    updates = list(make(center=None, search=search.search).run(scan[:40]))
    assert search.announced == []
    assert {u.center for u in updates} == {24.0}


def test_the_history_of_a_search_is_bounded(scan: list[Frame]) -> None:
    laid_out = make_projector("numba", ROWS, COLUMNS).measure(scan[0].pixels)
    search = Search(history=20 * (scan[0].pixels.nbytes + laid_out.nbytes))
    list(make(center=None, search=search.search).run(scan))
    assert len(search.search.history) == 20


def test_a_scan_whose_axis_leans_is_reconstructed_as_well_as_a_straight_one() -> None:
    rows, columns, angles = 6, 64, np.arange(90) * np.pi / 90
    truth = np.repeat(phantom(columns)[None], rows, axis=0)

    def scan_about(centers: np.ndarray) -> list[Frame]:
        projector = make_projector("numpy", rows, columns, axis_per_slice=True)
        geometry = projector.geometry(angles, centers)
        lines = projector.export_sinogram(projector.forward(projector.import_volume(truth), geometry))
        return [
            Frame(kind=FrameKind.PROJECTION, pixels=pixels, number=k, angle=float(angles[k]))
            for k, pixels in enumerate(lines)
        ]

    def error(frames: list[Frame], center: float | str) -> float:
        volume = batch.reconstruct_frames(frames, iterations=20, length=90, step=90, center=center)
        return float(np.sqrt(np.mean((volume - truth) ** 2)))

    straight, leaning = scan_about(np.full(rows, 32.0)), scan_about(np.linspace(30.5, 34.5, rows))
    best = error(straight, 32.0)
    assert error(leaning, "30.5:34.5") == pytest.approx(best, rel=0.05)
    assert error(leaning, 32.5) > 1.5 * best
    with pytest.raises(ValueError, match="centre 64 lies outside the detector"):
        error(leaning, "32:64")


def test_a_circle_bounds_a_scan_that_is_reconstructed_at_once(scan: list[Frame]) -> None:
    volume = batch.reconstruct_frames(scan, iterations=1, length=60, step=60, center=27.0, circle=0.8)
    inside = in_circle(COLUMNS, 0.8)
    assert volume[:, inside].all()
    assert not volume[:, ~inside].any()
