"""Measures against their definitions and the yardstick's figure, and the program that prints them."""

import json
import math
import sys

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aps_mini_apps.quality.measures import compare, inside_circle, relative_change
from aps_mini_apps.quality.program import main
from aps_mini_apps.quality.settings import QualitySettings
from ministream.base import log
from ministream.base.cli import add_program, new_app
from ministream.base.errors import UserError
from tests import yardstick


def disc(size, value=1.0):
    """A disc with a dent in it, so that nothing is symmetric."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    image = np.where(x**2 + y**2 < (0.4 * size) ** 2, value, 0.0)
    image[(x - size / 6) ** 2 + y**2 < (0.1 * size) ** 2] = 0.3 * value
    return image.astype(np.float32)


def noisy(image, amplitude, seed=0):
    return (image + np.random.default_rng(seed).normal(0.0, amplitude, image.shape)).astype(np.float32)


def test_rmse_and_ssim_are_the_yardsticks():
    truth = disc(96, 0.02)
    image = noisy(truth, 0.002)
    found = compare(image, truth)
    assert (found.rmse, found.ssim) == pytest.approx(yardstick.quality(image, truth), rel=1e-5)
    assert found.data_range == pytest.approx(0.02)


def test_measures_follow_their_definitions():
    truth = disc(64, 2.0)
    image = noisy(truth, 0.1)
    found = compare(image, truth, circle=False)
    a, b = image.astype(float).ravel(), truth.astype(float).ravel()
    mse = np.mean((a - b) ** 2)
    assert found.mse == pytest.approx(mse)
    assert found.rmse == pytest.approx(math.sqrt(mse) / 2.0)
    assert found.psnr == pytest.approx(10 * math.log10(4.0 / mse))
    assert found.pcc == pytest.approx(np.corrcoef(a, b)[0, 1])


def uqi_by_hand(a, b, size=8):
    """The mean over all windows, one by one."""
    values = []
    for row in range(a.shape[0] - size + 1):
        for column in range(a.shape[1] - size + 1):
            x, y = (v[row : row + size, column : column + size].astype(float).ravel() for v in (a, b))
            covariance = np.cov(x, y, bias=True)
            values.append(
                4 * covariance[0, 1] * x.mean() * y.mean()
                / ((covariance[0, 0] + covariance[1, 1]) * (x.mean() ** 2 + y.mean() ** 2))
            )  # fmt: skip
    return np.mean(values)


@pytest.mark.parametrize("size", [8, 9, 20])
def test_uqi_is_the_mean_over_all_windows(size):
    random = np.random.default_rng(3)
    a = random.uniform(1, 2, (size, size))
    b = a + random.uniform(0, 0.3, (size, size))
    assert compare(a, b, circle=False).uqi == pytest.approx(uqi_by_hand(a, b), rel=1e-6)


def test_equal_volumes_are_perfect():
    volume = np.stack([disc(180), disc(180, 2.0)])
    found = compare(volume, volume)
    assert (found.mse, found.rmse, found.psnr) == (0.0, 0.0, math.inf)
    assert (found.ssim, found.ms_ssim, found.uqi, found.pcc) == pytest.approx((1, 1, 1, 1))


def test_more_noise_is_worse_by_every_measure():
    truth = disc(192)
    few, much = (compare(noisy(truth, amplitude), truth) for amplitude in (0.05, 0.3))
    assert few.mse < much.mse
    assert few.psnr > much.psnr
    for name in ("ssim", "ms_ssim", "uqi", "pcc"):
        assert 0 < getattr(much, name) < getattr(few, name) < 1, name


def test_a_volume_is_judged_by_the_mean_of_its_slices():
    truth = np.stack([disc(180), disc(180)])
    image = np.stack([noisy(truth[0], 0.1, 1), noisy(truth[1], 0.2, 2)])
    whole = compare(image, truth)
    parts = [compare(a, b) for a, b in zip(image, truth, strict=True)]
    for name in ("mse", "ssim", "ms_ssim", "uqi"):
        assert getattr(whole, name) == pytest.approx(np.mean([getattr(part, name) for part in parts])), name
    assert parts[1].rmse > parts[0].rmse


def test_what_lies_outside_the_circle_does_not_count():
    truth = disc(64)
    image = noisy(truth, 0.05)
    spoilt = np.where(inside_circle(64, 64), image, 1e6)
    assert compare(spoilt, truth) == compare(image, truth)
    assert compare(spoilt, truth, circle=False).rmse > 1e3


def test_a_data_range_can_be_given():
    truth = disc(32)
    image = noisy(truth, 0.1)
    assert compare(image, truth, data_range=4.0).rmse == pytest.approx(compare(image, truth).rmse / 4)
    assert compare(image, truth, data_range=4.0).data_range == 4.0
    assert compare(image, np.ones_like(truth), data_range=1.0, circle=False).pcc == 0.0


@pytest.mark.parametrize(
    ("size", "missing"),
    [(6, {"ssim", "ms_ssim", "uqi"}), (7, {"ms_ssim", "uqi"}), (8, {"ms_ssim"}), (175, {"ms_ssim"}), (176, set())],
)
def test_images_too_small_for_a_measure_have_none_of_it(size, missing):
    found = compare(noisy(disc(size), 0.1), disc(size), circle=False)
    assert {name for name in ("ssim", "ms_ssim", "uqi") if getattr(found, name) is None} == missing
    assert all(math.isfinite(getattr(found, name)) for name in {"ssim", "ms_ssim", "uqi"} - missing)


@pytest.mark.parametrize(
    ("image", "reference", "words"),
    [
        (np.ones((8, 8)), np.ones((8, 9)), "must agree"),
        (np.full((8, 8), np.nan), np.eye(8), "image has values that are not finite"),
        (np.eye(8), np.full((8, 8), np.inf), "reference has values that are not finite"),
        (np.eye(8), np.zeros((8, 8)), "constant"),
        (np.ones(8), np.ones(8), "give .rows, columns."),
    ],
)
def test_what_cannot_be_judged_is_refused(image, reference, words):
    with pytest.raises(ValueError, match=words):
        compare(image, reference)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 100), st.integers(8, 24))
def test_figures_do_not_depend_on_the_unit(seed, factor, size):
    random = np.random.default_rng(seed)
    truth, image = random.random((size, size)), random.random((size, size))
    a, b = compare(image, truth), compare(image * factor, truth * factor)
    for name in ("rmse", "psnr", "ssim", "uqi", "pcc"):
        assert getattr(a, name) == pytest.approx(getattr(b, name), rel=1e-6, abs=1e-9), name


def test_relative_change():
    old, new = np.array([[3.0, 0.0]]), np.array([[3.0, 4.0]])
    assert relative_change(new, old) == pytest.approx(0.8)
    assert relative_change(new, new) == 0.0
    assert relative_change(0 * new, 0 * new) == 0.0


def stored(folder, name, volume, dataset="/data", **about):
    path = folder / name
    with h5py.File(path, "w") as file:
        file[dataset] = volume
        file.attrs.update(about)
    return str(path)


def events(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def judged(**values):
    log.configure("quality", style="json", stream=sys.stdout)
    return main(QualitySettings(**values))


def test_the_program_logs_every_measure_in_one_line(tmp_path, capsys):
    truth = np.stack([disc(64)] * 2)
    image = stored(tmp_path, "a.h5", noisy(truth, 0.1))
    reference = stored(tmp_path, "b.h5", truth, "/other/truth")
    assert judged(image=image, reference=reference, reference_dataset="/other/truth") == 0
    (event,) = events(capsys)
    expected = compare(noisy(truth, 0.1), truth)
    assert event["event"] == "quality"
    assert event["rmse"] == pytest.approx(expected.rmse)
    assert event["ssim"] == pytest.approx(expected.ssim)
    assert event["data_range"] == pytest.approx(1.0)
    assert event["ms_ssim"] is None


def test_without_a_reference_the_files_own_words_are_told(tmp_path, capsys):
    image = stored(tmp_path, "a.h5", disc(16)[None], window=7, angles_seen=42, change=0.25)
    assert judged(image=image) == 0
    (event,) = events(capsys)
    assert (event["event"], event["window"], event["angles_seen"], event["change"]) == ("convergence", 7, 42, 0.25)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"image": ""}, "no file was given"),
        ({"image": "none.h5"}, "none.h5: no such file"),
        ({"image": "text.h5"}, "text.h5 cannot be read as HDF5"),
        ({"image": "a.h5", "dataset": "/wrong"}, "a.h5 has no volume /wrong: it holds data"),
        ({"image": "a.h5", "reference": "b.h5"}, "must agree"),
        ({"image": "a.h5", "reference": "flat.h5"}, "constant"),
        ({"image": "a.h5"}, "give a reference file"),
    ],
)
def test_mistakes_are_told_in_one_line(values, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stored(tmp_path, "a.h5", disc(16))
    stored(tmp_path, "b.h5", disc(17))
    stored(tmp_path, "flat.h5", np.zeros((16, 16)))
    (tmp_path / "text.h5").write_text("not HDF5")
    with pytest.raises(UserError, match=words) as caught:
        judged(**values)
    assert "\n" not in str(caught.value)


def test_the_command_takes_its_files_by_position(tmp_path):
    from typer.testing import CliRunner

    image = stored(tmp_path, "a.h5", noisy(disc(16), 0.1))
    reference = stored(tmp_path, "b.h5", disc(16))
    app = new_app("Test.")
    app.callback()(lambda: None)
    add_program(app, "quality", QualitySettings, main, arguments={"image": "A", "reference": "B"})
    result = CliRunner().invoke(app, ["quality", image, reference, "--log-format", "json", "--no-circle"])
    assert result.exit_code == 0, result.output
    event = json.loads(result.output)
    assert event["rmse"] == pytest.approx(compare(noisy(disc(16), 0.1), disc(16), circle=False).rmse, rel=1e-6)
