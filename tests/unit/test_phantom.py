"""The phantom: its integrals are exact, its frames say what a detector would, its faults are where they should be."""

import time
from itertools import pairwise

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from aps_mini_apps.daq.phantom import HEIGHT, OPAQUE, SATURATED, PhantomSource
from aps_mini_apps.geometry import equal_angles

CLEAN = {"noise": False, "hot_pixels": 0, "stripes": 0}


def corrected(source, frames):
    flat = np.mean([frame.astype(float) for frame in source.flats()], axis=0)
    dark = np.mean([frame.astype(float) for frame in source.darks()], axis=0)
    return [-np.log((frame - dark) / (flat - dark)) for frame in frames]


def integrals(source):
    return np.stack([source.line_integrals(index) for index in range(len(source.angles))])


def project(image, angle, center):
    """Sum an image along rays, numerically: s = x cos - y sin, detector column c at s = c + 0.5 - center."""
    n = image.shape[0]
    s = np.arange(n)[:, np.newaxis] + 0.5 - center
    t = np.arange(-n, n, 0.5)[np.newaxis] + 0.25
    x, y = s * np.cos(angle) + t * np.sin(angle), t * np.cos(angle) - s * np.sin(angle)
    middle = (n - 1) / 2
    return map_coordinates(image.astype(float), [y + middle, x + middle], order=1).sum(axis=1) * 0.5


# The sample


def test_size_angles_and_axis():
    source = PhantomSource(columns=48, rows=3, projections=10, span=2 * np.pi, flats=4, darks=2, center_offset=-2.5)
    assert (source.rows, source.columns, source.center) == (3, 48, 21.5)
    np.testing.assert_array_equal(source.angles, equal_angles(10, 2 * np.pi))
    assert (len(list(source.flats())), len(list(source.darks()))) == (4, 2) == (source.flat_count, source.dark_count)
    assert next(source.projections([0])).shape == (3, 48)
    assert source.truth().shape == (3, 48, 48)


@pytest.mark.parametrize("offset", [0.0, 4.5])
@pytest.mark.parametrize("degrees", [0.0, 17.0, 90.0, 123.0])
def test_integrals_are_those_of_the_truth_in_its_orientation(offset, degrees):
    projections = 360
    source = PhantomSource(columns=192, rows=3, projections=projections, center_offset=offset)
    measured = source.line_integrals(round(degrees / 180 * projections))
    truth = source.truth()
    for row in range(3):
        numeric = project(truth[row], np.deg2rad(degrees), source.center)
        # interpolation blurs the edges: their error is large but local
        assert np.abs(measured[row] - numeric).mean() < 0.005 * OPAQUE
        assert np.abs(measured[row] - numeric).max() < 0.1 * OPAQUE


@pytest.mark.parametrize("offset", [0.0, -3.0])
def test_opposite_projections_mirror_at_the_axis(offset):
    source = PhantomSource(columns=64, rows=2, projections=8, span=2 * np.pi, center_offset=offset)
    first, opposite = source.line_integrals(1), source.line_integrals(5)
    # column c is as far from the axis as column 2 center - 1 - c
    columns = np.arange(max(0, int(2 * offset)), min(64, int(64 + 2 * offset)))
    mirror = (2 * source.center - 1 - columns).astype(int)
    np.testing.assert_allclose(opposite[:, columns], first[:, mirror], atol=1e-12)


def test_mass_is_the_same_from_every_side():
    source = PhantomSource(columns=128, rows=4, projections=30)
    mass = integrals(source).sum(axis=2)
    np.testing.assert_allclose(mass, np.broadcast_to(mass[0], mass.shape), rtol=2e-3)
    np.testing.assert_allclose(mass[0], source.truth().sum(axis=(1, 2)), rtol=2e-3)


def test_the_most_opaque_ray_is_as_stated():
    source = PhantomSource(columns=512, rows=11, projections=180)
    assert 0.95 * OPAQUE < integrals(source).max() <= OPAQUE


def test_the_truth_has_the_contrasts_of_the_table():
    source = PhantomSource(columns=256, rows=1)
    (image,) = source.truth()
    shell = OPAQUE / 0.5623 * 2 / 256  # value 1 per half-width of 128 columns
    assert image.dtype == np.float32
    assert image.max() == pytest.approx(shell, rel=1e-6)
    assert image.min() > -1e-9
    assert image[0].max() == 0
    assert image[150, 200] == pytest.approx(0.2 * shell, rel=1e-5)  # what the shell holds
    assert image[128, int(128 + 0.21 * 128)] == pytest.approx(0, abs=1e-9)  # the hollow at x = 0.21
    assert image[int(128 + 0.35 * 128), 128] == pytest.approx(0.3 * shell, rel=1e-5)  # the detail at y = 0.35


def test_rows_show_different_heights():
    truth = PhantomSource(columns=64, rows=6).truth()
    mass = truth.sum(axis=(1, 2))
    assert mass.min() > 0.5 * mass.max()  # every row shows much of the sample
    assert all(np.abs(a - b).max() > 0.05 * truth.max() for a, b in pairwise(truth))
    assert HEIGHT < 0.86


# The detector


def test_correcting_clean_frames_gives_the_integrals():
    source = PhantomSource(columns=96, rows=4, projections=12, photons=50_000, **CLEAN)
    for index, lines in enumerate(corrected(source, source.projections(range(12)))):
        np.testing.assert_allclose(lines, source.line_integrals(index), atol=3e-4)


def test_noise_is_that_of_the_photons():
    size = {"columns": 128, "rows": 32, "projections": 1, "hot_pixels": 0, "stripes": 0, "photons": 10_000}
    noisy, clean = PhantomSource(**size, flats=40), PhantomSource(**size, flats=1, noise=False)
    frames = np.stack(list(noisy.flats())).astype(float)
    expected = next(clean.flats()).astype(float)
    photons = expected - next(clean.darks())
    assert 0.9 * 10_000 < photons.max() < 1.12 * 10_000
    assert np.abs(frames.mean(axis=0) - expected).max() < 6 * np.sqrt(photons.max() / 40)
    assert frames.var(axis=0, ddof=1).mean() == pytest.approx(photons.mean() + 2.0**2, rel=0.02)


def test_flats_are_uneven_smoothly_and_by_pixel():
    (flat,) = PhantomSource(columns=128, rows=8, flats=1, **CLEAN).flats()
    line = flat.astype(float).mean(axis=0)
    assert line[:8].mean() < 0.85 * line[60:68].mean()
    gains = np.diff(flat.astype(float), axis=1)[:, 40:90] / flat.mean()  # where the light is nearly even
    assert 0.02 < np.std(gains) < 0.04


def test_hot_pixels_are_hot_in_every_frame():
    source = PhantomSource(columns=64, rows=4, projections=3, hot_pixels=7, seed=1)
    frames = [*source.flats(), *source.darks(), *source.projections(range(3))]
    hot = np.argwhere(frames[0] == SATURATED)
    assert len(hot) == 7
    assert all(np.array_equal(np.argwhere(frame == SATURATED), hot) for frame in frames)


def test_stripes_are_gains_that_flats_do_not_show():
    size = {"columns": 200, "rows": 3, "projections": 5, "noise": False, "hot_pixels": 0, "photons": 50_000}
    striped = PhantomSource(**size, stripes=2, stripe_amplitude=0.1, seed=3)
    plain = PhantomSource(**size, stripes=0, seed=3)
    np.testing.assert_array_equal(next(striped.flats()), next(plain.flats()))
    lines = np.stack(corrected(striped, striped.projections(range(5))))
    gains = np.exp(integrals(striped) - lines).mean(axis=0)
    columns = np.flatnonzero(np.abs(gains[0] - 1) > 0.01)
    assert 2 <= len(columns) <= 6
    assert ((np.abs(gains[:, columns] - 1) > 0.045) & (np.abs(gains[:, columns] - 1) < 0.105)).all()
    np.testing.assert_allclose(np.delete(gains, columns, axis=1), 1, atol=1e-3)


# Chance


def test_a_frame_depends_on_seed_and_index_alone():
    size = {"columns": 32, "rows": 2, "projections": 6}
    one, two = PhantomSource(**size, seed=5), PhantomSource(**size, seed=5)
    natural = list(one.projections(range(6)))
    list(two.flats())
    for index, frame in zip((4, 1, 4), two.projections([4, 1, 4]), strict=True):
        np.testing.assert_array_equal(frame, natural[index])
    assert natural[0].dtype == np.uint16


def test_frames_differ_by_seed_and_index():
    size = {"columns": 32, "rows": 2, "projections": 6}
    one, other = PhantomSource(**size, seed=5), PhantomSource(**size, seed=6)
    flats = [*one.flats(), *other.flats()]
    assert len({flat.tobytes() for flat in flats}) == 20
    assert not np.array_equal(next(one.projections([0])), next(other.projections([0])))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"columns": 0}, "at least one column"),
        ({"flats": 0}, "at least one column"),
        ({"photons": 0}, "photons"),
        ({"photons": 70_000}, "16 bits"),
        ({"columns": 16, "center_offset": 9.0}, "outside the detector"),
    ],
)
def test_impossible_scans(wrong, words):
    with pytest.raises(ValueError, match=words):
        PhantomSource(**wrong)


def test_it_is_faster_than_any_detector():
    began = time.process_time()
    source = PhantomSource(columns=256, rows=16, projections=180)
    assert sum(1 for _ in source.projections(range(180))) == 180
    assert time.process_time() - began < 5  # 0.25 s on a core of 2023
