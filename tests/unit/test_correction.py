"""Flat and dark correction: values by hand, bad pixels, and the same bits whatever the way."""

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from aps_mini_apps.dist.correction import Correction


def corrected_by(flat=1000, dark=100, shape=(3, 8), **options):
    correction = Correction(**options)
    correction.add_flat(np.full(shape, flat, np.uint16))
    correction.add_dark(np.full(shape, dark, np.uint16))
    return correction


def test_line_integrals_are_minus_log_of_dark_corrected_transmission():
    correction = Correction()
    for value in (900, 1100):
        correction.add_flat(np.full((2, 3), value, np.uint16))
    for value in (90, 110, 100):
        correction.add_dark(np.full((2, 3), value, np.uint8))
    counts = np.array([[1000, 550, 325], [1900, 100 + 9, 200]], np.uint16)
    expected = -np.log((counts - 100.0) / 900.0)
    out = correction.line_integrals(counts)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6)
    assert out[1, 0] < 0, "noise in air is kept on both sides of zero"
    assert correction.invalid == 0


@pytest.mark.parametrize("dtype", ["u1", "i2", ">u2", "u4", "i8", "f4", "f8"])
def test_any_real_dtype_gives_the_same(dtype):
    counts = np.arange(110, 126).reshape(2, 8)
    correction = corrected_by(200, 100, (2, 8))
    np.testing.assert_array_equal(
        correction.line_integrals(counts.astype(dtype)), correction.line_integrals(counts.astype(np.uint16))
    )


def test_works_in_place_and_into_a_given_buffer():
    correction = corrected_by()
    counts = np.linspace(200, 900, 24, dtype=np.float32).reshape(3, 8)
    expected = correction.line_integrals(counts)
    assert correction.line_integrals(counts, out=counts) is counts
    np.testing.assert_array_equal(counts, expected)


def test_rows_do_not_depend_on_their_neighbours():
    random = np.random.default_rng(1)
    flats = random.integers(0, 60000, (2, 12, 33), dtype=np.uint16)
    counts = random.integers(0, 60000, (12, 33), dtype=np.uint16)
    whole, slab = Correction(), Correction()
    whole.add_flat(flats[0])
    whole.add_dark(flats[1] // 50)
    slab.add_flat(flats[0, 4:9])
    slab.add_dark(flats[1, 4:9] // 50)
    np.testing.assert_array_equal(whole.line_integrals(counts)[4:9], slab.line_integrals(counts[4:9]))


def test_a_reset_forgets_the_earlier_set_only():
    correction = corrected_by(flat=5000, dark=100)
    correction.add_flat(np.full((3, 8), 1100.0), resets=True)
    np.testing.assert_allclose(
        correction.line_integrals(np.full((3, 8), 600)), -np.log(0.5), rtol=1e-6
    )  # and a frame after a projection counts as well:
    correction.add_dark(np.full((3, 8), 300.0))
    np.testing.assert_allclose(correction.line_integrals(np.full((3, 8), 600)), -np.log(400 / 900), rtol=1e-6)


def test_ready_needs_both_sets():
    correction = Correction()
    assert not correction.ready
    correction.add_flat(np.ones((2, 2)))
    assert not correction.ready
    with pytest.raises(ValueError, match="before a dark"):
        correction.line_integrals(np.ones((2, 2)))
    correction.add_dark(np.zeros((2, 2)))
    assert correction.ready
    assert Correction(normalize=False).ready


def test_without_normalisation_pixels_are_transmissions():
    pixels = np.array([[1.0, 0.5, 0.25, 0.0]])
    correction = Correction(normalize=False)
    np.testing.assert_allclose(correction.line_integrals(pixels), -np.log([[1.0, 0.5, 0.25, 0.25]]), rtol=1e-6)
    np.testing.assert_allclose(
        Correction(normalize=False).line_integrals(np.array([[1, 0, 3]], np.uint8)),
        [[0.0, -np.log(3) / 2, -np.log(3)]],
        rtol=1e-6,
    )


def test_without_log_transmissions_come_out():
    correction = corrected_by(minus_log=False)
    out = correction.line_integrals(np.array([[100, 550, 1000, 99, 1000, 1000, 1000, 1000]] * 3))
    np.testing.assert_allclose(out[0, :5], [0.5, 0.5, 1.0, 1.0, 1.0], rtol=1e-6)
    assert correction.invalid == 6


def test_dark_pixels_are_interpolated_along_the_row_not_set_to_air():
    correction = corrected_by()
    counts = np.full((3, 8), 190, np.uint16)  # a dense sample: -log(0.1)
    counts[0, 3] = 100  # no light
    counts[1, 2:5] = 50  # less than no light
    counts[2, 0] = counts[2, 7] = 0  # at both ends
    counts[1, 5:] = 550
    out = correction.line_integrals(counts)
    dense, half = -np.log(0.1), -np.log(0.5)
    np.testing.assert_allclose(out[[0, 2]], dense, rtol=1e-6)
    steps = np.linspace(dense, half, 5)
    np.testing.assert_allclose(out[1], [dense, *steps, half, half], rtol=1e-6)
    assert correction.invalid == 6


def test_pixels_that_never_respond_are_interpolated_in_every_projection():
    flat = np.full((2, 9), 30000, np.uint16)
    dark = np.full((2, 9), 100, np.uint16)
    flat[0, 4] = dark[0, 4] = 65535  # saturated
    flat[1, 2] = 103  # dead, but for noise
    correction = Correction()
    correction.add_flat(flat)
    correction.add_dark(dark)
    for _ in range(2):
        out = correction.line_integrals(np.where(flat == 30000, 15050, flat).astype(np.uint16))
        np.testing.assert_allclose(out, -np.log(0.5), rtol=1e-6)
    assert correction.invalid == 4


def test_a_dim_beam_is_no_reason_to_call_pixels_dead():
    flat = np.array([[30000, 30000, 30000, 1000, 600]])
    correction = Correction()
    correction.add_flat(flat)
    correction.add_dark(np.zeros((1, 5)))
    np.testing.assert_allclose(correction.line_integrals(flat / 2), np.full((1, 5), np.log(2)), rtol=1e-6)
    assert correction.invalid == 0


def test_a_row_without_any_valid_pixel_becomes_air():
    counts = np.full((3, 8), 500.0)
    counts[1] = np.nan
    out = corrected_by().line_integrals(counts)
    assert (out[1] == 0).all()
    assert np.isfinite(out).all()


def test_invalid_pixels_stay_on_request():
    counts = np.full((3, 8), 500.0)
    counts[0, :3] = np.nan, 100, 50
    correction = corrected_by(remove_invalids=False)
    out = correction.line_integrals(counts)
    np.testing.assert_array_equal(np.isfinite(out).sum(), 21)
    assert correction.invalid == 0


@pytest.mark.parametrize(
    ("flat", "dark", "words"),
    [(0, 0, "all zero"), (100, 100, "nowhere brighter"), (90, 100, "nowhere brighter")],
)
def test_flats_without_light_are_refused(flat, dark, words):
    with pytest.raises(ValueError, match=words):
        corrected_by(flat, dark).line_integrals(np.ones((3, 8)))


def test_shapes_that_disagree_are_refused():
    correction = corrected_by()
    with pytest.raises(ValueError, match=r"flat of shape \(2, 8\)"):
        correction.add_flat(np.ones((2, 8)))
    with pytest.raises(ValueError, match="projection of shape"):
        correction.line_integrals(np.ones((1, 8)))
    correction.add_dark(np.ones((2, 8)), resets=True)
    with pytest.raises(ValueError, match="do not fit each other"):
        correction.line_integrals(np.ones((3, 8)))


def within_the_row(image):
    """Replace NaN along each row, as NumPy interpolates."""
    for row in image:
        bad = np.isnan(row)
        row[bad] = 0.0 if bad.all() else np.interp(np.flatnonzero(bad), np.flatnonzero(~bad), row[~bad])
    return image


BELOW = st.floats(-9, 0, width=32)
NOT_FINITE = st.sampled_from([np.nan, np.inf, -np.inf])


@settings(deadline=None)
@given(
    npst.arrays(
        np.float32,
        npst.array_shapes(min_dims=2, max_dims=2, max_side=12),
        elements=st.one_of(st.floats(0.125, 9, width=32), BELOW, NOT_FINITE),
    )
)
def test_invalid_pixels_are_interpolated_as_numpy_does_it_row_by_row(image):
    valid = np.isfinite(image) & (image > 0)
    expected = within_the_row(np.where(valid, image, np.nan))
    correction = Correction(normalize=False, minus_log=False)
    np.testing.assert_allclose(correction.line_integrals(image), expected, atol=1e-5)
    assert correction.invalid == np.count_nonzero(~valid)


@settings(deadline=None)
@given(npst.arrays(np.float32, 40, elements=st.floats(2.0**-126, float(np.finfo(np.float32).max), width=32)))
def test_the_logarithm_is_right_to_the_last_places(numbers):
    near_one = 1 + numbers[:20] / numbers[20:].max().clip(numbers.max()) / 8
    for values in (numbers, near_one.astype(np.float32)):
        exact = -np.log(values.astype(np.float64))
        out = Correction(normalize=False).line_integrals(values[None])[0]
        assert (abs(out - exact) <= 2 * np.spacing(abs(exact).astype(np.float32))).all()


@settings(deadline=None, max_examples=30)
@given(
    dtype=st.sampled_from([np.uint8, np.uint16, np.float32, np.int32]),
    rows=st.integers(1, 40),
    columns=st.sampled_from([1, 7, 128, 131, 300]),
    seed=st.integers(0, 1000),
)
def test_frames_are_minus_log_of_their_transmission_in_float64(dtype, rows, columns, seed):
    random = np.random.default_rng(seed)
    flats, darks, counts = (
        random.integers(low, high, (rows, columns)).astype(dtype) for low, high in ((150, 255), (0, 30), (5, 255))
    )
    correction = Correction()
    correction.add_flat(flats)
    correction.add_dark(darks)
    light, flat = counts.astype(np.float64) - darks, flats.astype(np.float64) - darks
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = within_the_row(np.where(light > 0, -np.log(light / flat), np.nan))
    np.testing.assert_allclose(correction.line_integrals(counts), expected, rtol=1e-6, atol=2e-7)
    assert correction.invalid == np.count_nonzero(light <= 0)


@pytest.mark.parametrize("lanes", [1, 2, 16, 32])
@pytest.mark.parametrize("options", [{}, {"minus_log": False}, {"remove_invalids": False}], ids=str)
def test_the_window_layout_holds_the_same_bits(lanes, options):
    random = np.random.default_rng(3)
    correction = Correction(**options)
    correction.add_flat(np.full((37, 300), 60000, np.uint16))
    correction.add_dark(random.integers(0, 200, (37, 300), dtype=np.uint16))
    counts = random.integers(100, 65000, (37, 300), dtype=np.uint16)
    counts[5] = counts[9, 290:] = counts[36, :140] = 0
    rows = correction.line_integrals(counts)
    slabs = -(-37 // lanes)
    window = correction.line_integrals(counts, out=np.full((slabs, 300, lanes), 5, np.float32))
    plain = window.transpose(0, 2, 1).reshape(slabs * lanes, 300)
    np.testing.assert_array_equal(plain[:37], rows)
    assert not plain[37:].any()


def test_threads_and_the_way_pixels_lie_in_memory_do_not_change_a_bit():
    random = np.random.default_rng(4)
    counts = random.integers(0, 60000, (50, 77), dtype=np.uint16)
    correction = corrected_by(60000, 30, counts.shape)
    received = np.frombuffer(b"x" + counts.tobytes(), np.uint16, offset=1).reshape(counts.shape)
    assert not received.flags.writeable
    assert not received.flags.aligned
    results = []
    for threads in (1, numba.config.NUMBA_NUM_THREADS):
        numba.set_num_threads(threads)
        try:
            results += [correction.line_integrals(frame) for frame in (counts, np.asfortranarray(counts), received)]
        finally:
            numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize("shape", [(3, 9), (2, 8), (1, 8, 2), (3, 9, 1), (24,)])
def test_an_output_of_another_size_is_refused(shape):
    with pytest.raises(ValueError, match="does not fit into an array"):
        corrected_by().line_integrals(np.ones((3, 8)), out=np.empty(shape, np.float32))
