"""Stripes fall at least tenfold, also in the first projections that leave; a scan without them is left alone.

Stripes are known here: those of the phantom's gains without noise, and columns shifted by hand with noise.
"""

import numpy as np
import pytest

from aps_mini_apps.daq.phantom import PhantomSource
from aps_mini_apps.dist.correction import Correction
from aps_mini_apps.dist.stripes import StripeFilter

WARM_UP = 16


def sinograms(*, columns=256, rows=16, projections=180, **options):
    """Return the corrected projections of a phantom scan, and their exact line integrals."""
    source = PhantomSource(columns=columns, rows=rows, projections=projections, hot_pixels=0, **options)
    correction = Correction()
    for flat in source.flats():
        correction.add_flat(flat)
    for dark in source.darks():
        correction.add_dark(dark)
    order = range(projections)
    measured = np.array([correction.line_integrals(p) for p in source.projections(order)])
    return measured, np.array([source.line_integrals(k) for k in order], np.float32)


def streamed(projections):
    """Filter as the distributor does: the first ones are held until the filter is warm."""
    stripes, held, left = StripeFilter(warm_up=WARM_UP), [], []
    for projection in projections.copy():
        stripes.observe(projection)
        held.append(projection)
        while held and stripes.warm:
            stripes.subtract(held[0])
            left.append(held.pop(0))
    return np.array(left)


def rms(values):
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def some_stripes(columns, count, amplitude, seed):
    """Return offsets of columns: `count` stripes, 1 to 3 wide, apart from each other."""
    random = np.random.default_rng(seed)
    offsets = np.zeros(columns, np.float32)
    for k, start in enumerate(random.choice(np.arange(4, columns - 4, 9), count, replace=False)):
        offsets[start : start + 1 + k % 3] = random.uniform(0.6, 1.0) * amplitude * random.choice((-1, 1))
    return offsets


def test_stripes_of_the_phantom_fall_tenfold():
    whole, first, second_half = [], [], []
    for seed in range(8):
        measured, exact = sinograms(noise=False, seed=seed)
        before, after = measured - exact, streamed(measured) - exact
        assert rms(before) > 0.003
        whole.append(rms(before) / rms(after))
        first.append(rms(before) / rms(after[:WARM_UP]))
        second_half.append(rms(before) / rms(after[90:]))
    assert whole[0] > 20, "the phantom as it is by default"
    assert np.median(whole) > 20
    assert np.median(first) > 10, "also in those that were held and left first"
    # A stripe under an edge of the sample that hardly moves at first is found once the edge has gone.
    assert min(second_half) > 10


def test_stripes_fall_tenfold_through_photon_noise():
    measured, _ = sinograms(stripes=0, photons=20_000, seed=4)
    offsets = some_stripes(256, 8, 0.05, seed=5)
    difference = streamed(measured + offsets) - measured  # the noise is the same in both
    assert rms(difference.mean(axis=(0, 1))) < rms(offsets) / 10


def test_stripes_of_single_rows_fall_too():
    measured, _ = sinograms(stripes=0, photons=50_000, flats=100, seed=6, rows=8)
    offsets = np.stack([some_stripes(256, 6, 0.05, seed) for seed in range(8)])
    left = streamed(measured + offsets)
    assert rms((left - measured)[-1]) < rms(offsets) / 4, "by the end of the scan"
    assert rms(left - measured) < rms(offsets) / 2, "over the whole of it"


def test_a_scan_without_stripes_is_left_alone():
    measured, _ = sinograms(noise=False, stripes=0, seed=7)
    change = streamed(measured) - measured
    assert rms(change) < 0.0005, "rms: a hundredth of the stripes of the other tests"
    assert np.mean(np.abs(change) > 1e-5) < 0.02, "most pixels are not touched at all"


def test_noise_is_not_taken_for_stripes():
    random = np.random.default_rng(8)
    measured = random.normal(1.0, 0.02, (60, 32, 128)).astype(np.float32)
    change = streamed(measured) - measured
    assert np.mean(change != 0) < 0.005


@pytest.mark.parametrize("first", [0, 1, 2, 63, 62, 61])
def test_stripes_at_the_detectors_ends(first):
    random = np.random.default_rng(9)
    measured = random.normal(1.0, 0.002, (40, 8, 64)).astype(np.float32)
    offsets = np.zeros(64, np.float32)
    offsets[first : first + 2] = 0.04
    left = streamed(measured + offsets)
    assert rms(left.mean(axis=(0, 1)) - measured.mean(axis=(0, 1))) < rms(offsets) / 10


def test_the_same_projections_give_the_same_bits():
    measured, _ = sinograms(stripes=5, seed=10, columns=96, projections=70)
    np.testing.assert_array_equal(streamed(measured), streamed(measured))


def test_nothing_is_subtracted_before_it_is_warm():
    stripes = StripeFilter(warm_up=3)
    projection = np.random.default_rng(11).random((4, 20), np.float32)
    for _ in range(2):
        stripes.observe(projection)
    expected = projection.copy()
    stripes.subtract(projection)
    assert not stripes.warm
    np.testing.assert_array_equal(projection, expected)


def test_memory_does_not_grow_with_the_scan():
    stripes = StripeFilter()
    random = np.random.default_rng(12)
    for _ in range(300):
        stripes.observe(random.random((2, 30), np.float32))
    held = [value.nbytes for value in vars(stripes).values() if isinstance(value, np.ndarray)]
    assert sum(held) <= 20 * 2 * 30 * 4


def test_invalid_pixels_do_not_spread():
    measured = np.random.default_rng(13).normal(1.0, 0.002, (40, 8, 64)).astype(np.float32)
    measured[5, 3, 20] = np.nan
    measured[:, 4, 30] = np.inf
    left = streamed(measured)
    np.testing.assert_array_equal(np.isfinite(left), np.isfinite(measured))


@pytest.mark.parametrize("columns", [1, 2, 5, 12])
def test_narrow_detectors_pass(columns):
    measured = np.random.default_rng(14).normal(1.0, 0.01, (20, 3, columns)).astype(np.float32)
    assert rms(streamed(measured) - measured) < 0.01


def test_another_shape_is_refused():
    stripes = StripeFilter()
    stripes.observe(np.zeros((3, 20), np.float32))
    with pytest.raises(ValueError, match=r"\(2, 20\) came after others of shape \(3, 20\)"):
        stripes.observe(np.zeros((2, 20), np.float32))
