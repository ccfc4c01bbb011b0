"""The rotation axis: found from mirror images and refined on slices, of phantoms and of a real tooth."""

import math

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aps_mini_apps.daq.phantom import PhantomSource
from aps_mini_apps.dist.correction import Correction
from aps_mini_apps.geometry import equal_angles
from aps_mini_apps.sirt.axis import find_pair, from_pair, refine


def scan(center_offset, *, span=math.pi, noise=True, columns=256, projections=181):
    """Return the corrected projections (angles, rows, columns) of a phantom, its angles and its axis."""
    source = PhantomSource(
        columns=columns, rows=4, projections=projections, span=span, noise=noise, center_offset=center_offset
    )
    correction = Correction()
    for flat in source.flats():
        correction.add_flat(flat)
    for dark in source.darks():
        correction.add_dark(dark)
    measured = [correction.line_integrals(p) for p in source.projections(range(projections))]
    return np.array(measured), source.angles, source.center


@pytest.mark.parametrize("offset", [-12.3, -0.5, 0.0, 3.0, 9.75])
def test_exact_opposites_give_the_axis(offset):
    projections, angles, center = scan(offset, span=math.pi * 181 / 180)
    first, last = find_pair(angles)
    assert angles[last] - angles[first] == pytest.approx(math.pi)
    assert from_pair(projections[first], projections[last]) == pytest.approx(center, abs=0.5)


@pytest.mark.parametrize("offset", [-12.3, 0.0, 3.0, 9.75])
def test_the_refined_axis_is_within_a_quarter_of_a_column(offset):
    projections, angles, center = scan(offset)  # ends one step short of 180 degrees
    first, last = find_pair(angles)
    guess = from_pair(projections[first], projections[last])
    assert guess == pytest.approx(center, abs=1.5)
    assert refine(projections[:, 1], angles, guess) == pytest.approx(center, abs=0.25)


def test_a_full_turn_will_do():
    projections, angles, center = scan(5.4, span=2 * math.pi, projections=240)
    first, last = find_pair(angles)
    assert refine(projections[:, 2], angles, from_pair(projections[first], projections[last])) == pytest.approx(
        center, abs=0.25
    )


@settings(deadline=None, max_examples=30)
@given(st.floats(40, 88), st.integers(0, 1000))
def test_a_mirrored_profile_is_found_wherever_the_axis_is(center, seed):
    random = np.random.default_rng(seed)
    places, heights = random.uniform(-25, 25, 3), random.uniform(0.5, 1, 3)

    def profile(s):
        return sum(h * np.exp(-((s - x) ** 2) / 50) for x, h in zip(places, heights, strict=True))

    s = np.arange(128) + 0.5 - center
    first, opposite = (np.asarray(profile(t)[None], np.float32) for t in (s, -s))
    assert from_pair(first, opposite) == pytest.approx(center, abs=0.3)


def test_pairs_of_angles():
    assert find_pair(np.radians([0, 60, 120, 180, 240])) in ((0, 3), (1, 4))
    assert find_pair(equal_angles(180)) == (0, 179)  # 179 degrees
    assert find_pair(np.radians([200.0, 90.0, 19.0, 0.0])) == (0, 2)  # any order, the earlier one first
    assert find_pair(np.radians([0.0, 60.0, 120.0])) is None
    assert find_pair(np.array([])) is None
    assert find_pair(np.array([1.0])) is None


def test_a_featureless_scan_keeps_the_guess_finite():
    flat = np.zeros((90, 64), np.float32)
    assert math.isfinite(from_pair(flat[:2], flat[:2]))
    assert math.isfinite(refine(flat, equal_angles(90), 32.0))


def test_the_tooth(shared_data):
    correction = Correction()
    with h5py.File(shared_data / "tooth.h5") as file:
        exchange = file["exchange"]
        for flat in exchange["data_white"][()]:
            correction.add_flat(flat)
        for dark in exchange["data_dark"][()]:
            correction.add_dark(dark)
        projections = np.array([correction.line_integrals(p) for p in exchange["data"][()]])
        angles = np.radians(exchange["theta"][()])
    first, last = find_pair(angles)
    guess = from_pair(projections[first], projections[last])
    for row in range(2):
        assert refine(projections[:, row], angles, guess) == pytest.approx(296.0, abs=1.0)
