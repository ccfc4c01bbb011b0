"""Angles and rows: the conventions of geometry and frames, at their edges."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aps_mini_apps.frames import Frame, FrameKind, RowRange
from aps_mini_apps.geometry import LeaningAxis, partition_rows, wrap_degrees_float32, wrap_float32

ANGLES = st.floats(-1e6, 1e6)


@given(ANGLES)
def test_wrapped_angles_point_the_same_way_and_stay_in_range_as_float32(angle: float) -> None:
    radians, degrees = wrap_float32(angle), wrap_degrees_float32(angle)
    assert 0.0 <= radians < np.float32(2 * math.pi)
    assert 0.0 <= degrees < 360.0
    for wrapped in (float(radians), math.radians(degrees)):
        assert math.cos(wrapped - angle) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("angle", [2 * math.pi, -1e-12, math.nextafter(2 * math.pi, 0), 4 * math.pi])
def test_angles_that_round_up_to_a_full_turn_are_zero(angle: float) -> None:
    assert wrap_float32(angle) == 0.0
    assert wrap_degrees_float32(angle) == 0.0


@given(st.integers(1, 500), st.data())
def test_rows_are_split_as_evenly_as_possible_the_first_slabs_being_the_larger(total: int, data: st.DataObject) -> None:
    workers = data.draw(st.integers(1, total))
    slabs = partition_rows(total, workers)
    counts = [slab.count for slab in slabs]
    assert [slab.start for slab in slabs] == [sum(counts[:rank]) for rank in range(workers)]
    assert sum(counts) == total
    assert counts == sorted(counts, reverse=True)
    assert counts[0] - counts[-1] <= 1
    assert counts.count(counts[0]) in (total % workers, workers)


@pytest.mark.parametrize(("total", "workers"), [(3, 4), (3, 0), (0, 1)])
def test_more_workers_than_rows_are_refused(total: int, workers: int) -> None:
    with pytest.raises(ValueError, match=f"{workers} workers cannot share {total} rows"):
        partition_rows(total, workers)


def test_a_slab_is_a_view_that_knows_its_rows() -> None:
    frame = Frame(kind=FrameKind.PROJECTION, pixels=np.arange(12).reshape(4, 3))
    rows = RowRange(start=1, stop=3, total=4)
    slab = frame.slab(rows)
    assert np.shares_memory(slab.pixels, frame.pixels)
    assert slab.pixels.tolist() == [[3, 4, 5], [6, 7, 8]]
    assert slab.rows == rows


def test_frames_are_two_dimensional_and_rows_lie_within_the_whole() -> None:
    with pytest.raises(ValueError, match="rows and columns"):
        Frame(kind=FrameKind.DARK, pixels=np.zeros(3))
    with pytest.raises(ValueError, match="do not lie within 4 rows"):
        RowRange(start=2, stop=5, total=4)


@given(st.integers(2, 60), st.data())
def test_workers_find_the_centres_of_their_own_rows_on_an_axis_that_leans(total: int, data: st.DataObject) -> None:
    axis = LeaningAxis.parse("20.5:23")
    slabs = partition_rows(total, data.draw(st.integers(1, total)))
    centers = np.concatenate([axis.centers(slab) for slab in slabs])
    np.testing.assert_allclose(centers, np.linspace(20.5, 23, total))
    assert str(axis) == "20.5:23"


def test_an_axis_that_leans_ends_on_the_detector_and_is_two_numbers() -> None:
    assert LeaningAxis(3.0, 5.0).centers(RowRange(start=0, stop=1, total=1)).tolist() == [3.0]
    with pytest.raises(ValueError, match="centre 64 lies outside the detector"):
        LeaningAxis.parse("31:64").check(64)
    with pytest.raises(ValueError, match=r"'31:' is no rotation axis: give columns, as 296, or as 295.5:296.5"):
        LeaningAxis.parse("31:")
