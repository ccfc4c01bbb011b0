"""`ministream run`: three processes, one scan, files and a report."""

import signal
from pathlib import Path

import h5py
import numpy as np
import pytest

from aps_mini_apps import batch
from aps_mini_apps.daq.hdf5 import open_scan
from aps_mini_apps.daq.phantom import PhantomSource
from aps_mini_apps.quality.measures import compare
from tests.integration.conftest import Start

SMALL = ("--columns", "64", "--rows", "5", "--projections", "90", "--frame-rate", "0")


def write_scan(path: Path, source: PhantomSource) -> Path:
    with h5py.File(path, "w") as file:
        file["exchange/data"] = np.stack(list(source.projections(range(len(source.angles)))))
        file["exchange/data_white"] = np.stack(list(source.flats()))
        file["exchange/data_dark"] = np.stack(list(source.darks()))
        file["exchange/theta"] = np.rad2deg(source.angles)
    return path


def read(path: Path) -> tuple[np.ndarray, dict]:
    with h5py.File(path) as file:
        return file["data"][()], dict(file.attrs)


def last_file(folder: Path) -> Path:
    return max(folder.glob("[0-9]*-recon.h5"))


def test_without_a_file_a_phantom_is_scanned_judged_and_reported(start: Start, tmp_path: Path) -> None:
    run = start("run", *SMALL)
    assert run.finish() == 0, run.errors
    output = tmp_path / "output"
    names = {path.name for path in output.iterdir()}
    assert {"000000-recon.h5", "preview.png", "report.html"} <= names
    volume, about = read(last_file(output))
    assert about["state"] == "complete"
    assert (about["angles_seen"], about["frames_lost"], about["window"]) == (90, 0, 90 + 31 - 1)
    source = PhantomSource(columns=64, rows=5, projections=90)
    assert about["center"] == pytest.approx(source.center, abs=0.3)
    assert compare(volume, source.truth()).pcc > 0.9
    ended = {e["service"]: e for e in run.events if e["event"] == "scan ended"}
    assert (ended["daq"]["projections"], ended["dist"]["sent"], ended["sirt"]["received"]) == (90, 90, 90)
    page = (output / "report.html").read_text()
    assert "The scan is complete; no frame was lost." in page
    assert "SSIM" in page
    assert "http" not in page.replace("http-equiv", "")  # self-contained
    assert (output / "preview.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("links", ["push", "aps"])
def test_the_streamed_image_is_the_batch_image(start: Start, tmp_path: Path, links: str) -> None:
    """Bit for bit on our links; on the old ones the angle is a float32."""
    path = write_scan(tmp_path / "scan.h5", PhantomSource(columns=48, rows=3, projections=40))
    window = ("--window-length", "40", "--window-step", "40", "--window-iter", "7")
    run = start("run", path, "--center", "25.5", *window, "--links", links, "-o", tmp_path / "out")
    assert run.finish() == 0, run.errors
    streamed, about = read(last_file(tmp_path / "out"))
    assert about["window"] == 0
    expected = batch.reconstruct(path, iterations=7, center=25.5)
    if links == "push":
        np.testing.assert_array_equal(streamed, expected)
    else:
        np.testing.assert_allclose(streamed, expected, rtol=0, atol=2e-4 * np.ptp(expected))


@pytest.mark.parametrize(
    ("rows", "center"), [(5, 25.5), (7, 25.5), (7, "24.5:26.5")], ids=["few", "straight", "leaning"]
)
def test_workers_share_the_rows_and_their_slabs_are_one_file(
    start: Start, tmp_path: Path, rows: int, center: float | str
) -> None:
    """Bit for bit; slabs of one or two rows have loops of their own, which add up in another order."""
    path = write_scan(tmp_path / "scan.h5", PhantomSource(columns=48, rows=rows, projections=40))
    window = ("--window-length", "40", "--window-step", "40", "--window-iter", "3")
    run = start("run", path, "--center", center, *window, "--workers", "2", "-o", tmp_path / "out")
    assert run.finish() == 0, run.errors
    streamed, about = read(tmp_path / "out" / "000000-recon.h5")
    assert about["center"] == center
    assert streamed.shape == (rows, 48, 48)
    expected = batch.reconstruct(path, iterations=3, center=center)
    np.testing.assert_allclose(streamed, expected, rtol=0, atol=0 if rows > 5 else 1e-6 * np.ptp(expected))


def test_a_real_scan_shows_a_tooth(start: Start, tmp_path: Path, shared_data: Path) -> None:
    run = start("run", shared_data / "tooth.h5", "-o", tmp_path / "auto")
    assert run.finish() == 0, run.errors
    assert read(last_file(tmp_path / "auto"))[1]["center"] == pytest.approx(296.0, abs=1.0)


def test_the_whole_tooth_in_one_window_equals_tomopy(start: Start, tmp_path: Path, shared_data: Path) -> None:
    window = ("--window-length", "181", "--window-step", "181", "--window-iter", "30")
    run = start("run", shared_data / "tooth.h5", "--center", "296", *window, "-o", tmp_path / "out")
    assert run.finish() == 0, run.errors
    streamed, _ = read(tmp_path / "out" / "000000-recon.h5")
    golden = np.load(shared_data / "golden" / "tooth_sirt30.npz")["tomopy"]
    y, x = np.ogrid[:640, :640]
    circle = (y - 319.5) ** 2 + (x - 319.5) ** 2 < 294**2
    for ours, theirs in zip(streamed, golden, strict=True):
        assert np.corrcoef(ours[circle], theirs[circle])[0, 1] >= 0.999
    with open_scan(shared_data / "tooth.h5") as source:
        assert streamed.shape == (source.rows, source.columns, source.columns)


def test_ctrl_c_ends_all_programs_and_keeps_what_was_reconstructed(start: Start, tmp_path: Path) -> None:
    run = start("run", "--columns", "64", "--rows", "2", "--projections", "2000", "--frame-rate", "40")
    while True:
        event = run.wait_for("file written")
        if event["service"] == "sirt":
            break
    assert run.finish(stop=signal.SIGINT) == 130
    assert run.events[-1]["event"] == "stopped"
    _, about = read(last_file(tmp_path / "output"))
    assert about["state"].startswith("SIG")
    assert not list((tmp_path / "output").glob(".*"))


def test_options_come_from_a_file_and_the_environment_too(start: Start, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(
        "run:\n  columns: 48\n  rows: 2\nsirt:\n  window_length: 5\ndaq:\n  projections: 30\n"
    )
    run = start("run", "--config", "s.yaml", "--frame-rate", "0", MINISTREAM_SIRT_WRITE_FREQ="10")
    assert run.finish() == 0, run.errors
    volume, about = read(last_file(tmp_path / "output"))
    assert volume.shape == (2, 48, 48)
    assert (about["window_length"], about["angles_seen"]) == (5, 30)
    assert sorted(p.name for p in (tmp_path / "output").glob("*recon.h5")) == [
        f"0000{window:02d}-recon.h5" for window in (0, 10, 20, 30, 33)
    ]
