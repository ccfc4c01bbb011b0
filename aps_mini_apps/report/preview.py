"""The picture of a run: slices, sinogram, convergence, and (where it is known) the truth beside them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase

INK, FAINT, ACCENT, SECOND = "#1d2733", "#8a97a6", "#0b7285", "#d9480f"
BRIGHTEST = 1.6
"""White is at most so many times the 90th percentile: a thin bright shell must not hide what is inside it."""

STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.edgecolor": FAINT,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A reconstruction read back from its file.

    Attributes
    ----------
    path
        The file.
    volume
        (slices, rows, columns) float32, attenuation per pixel.
    attributes
        What the file says of itself.
    monitor
        Per window `window`, `change`, `misfit`; per projection `angles` (radians), `sinogram` (projections,
        columns).
    """

    path: Path
    volume: npt.NDArray[np.float32]
    attributes: dict[str, object]
    monitor: dict[str, npt.NDArray[np.float32]]


def read_result(path: Path, dataset: str = "/data") -> Result:
    """Read an output file of the reconstruction."""
    with h5py.File(path, "r") as file:
        monitor = {name: values[()] for name, values in file.get("monitor", {}).items()}
        return Result(path=path, volume=file[dataset][()], attributes=dict(file.attrs), monitor=monitor)


def draw(result: Result, truth: npt.NDArray[np.float32] | None, title: str) -> Figure:
    """Draw `result`; `truth` (same shape) adds the true slice and a profile through both."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(12, 7.4), layout="constrained", facecolor="white")
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
        top, bottom = np.atleast_1d(figure.subfigures(2, 1, height_ratios=[1.25, 1.0]))  # type: ignore[arg-type]
        _draw_slices(top, result.volume, truth)
        _draw_course(bottom, result, truth)
        return figure


def _draw_slices(figure: FigureBase, volume: npt.NDArray[np.float32], truth: npt.NDArray[np.float32] | None) -> None:
    slices, size, _ = volume.shape
    middle = slices // 2
    panels = [(f"slice {index}", volume[index]) for index in sorted({slices // 6, middle, slices - 1 - slices // 6})]
    if truth is not None:
        panels.append((f"truth, slice {middle}", truth[middle]))
    low, high = _window(volume if truth is None else truth)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, (name, image) in zip(axes, panels, strict=True):
        shown = ax.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        ax.set_title(name)
        ax.set_xticks([0, size - 1])
        ax.set_yticks([0, size - 1])
    figure.colorbar(shown, ax=list(axes), shrink=0.85, label="attenuation, 1/pixel")


def _draw_course(figure: FigureBase, result: Result, truth: npt.NDArray[np.float32] | None) -> None:
    sinogram_ax, course_ax, profile_ax = figure.subplots(1, 3)
    sinogram = result.monitor["sinogram"]
    sinogram_ax.imshow(sinogram, cmap="gray", aspect="auto", interpolation="nearest")
    sinogram_ax.set(title="sinogram, middle row", xlabel="column", ylabel="projection")
    _draw_convergence(course_ax, result)
    middle, row = result.volume.shape[0] // 2, result.volume.shape[1] // 2
    profile_ax.plot(result.volume[middle, row], color=ACCENT, lw=1, label="reconstruction")
    if truth is not None:
        profile_ax.plot(truth[middle, row], color=SECOND, lw=1, label="truth")
        profile_ax.legend(frameon=False, loc="upper right")
    profile_ax.set(title=f"profile, slice {middle}, row {row}", xlabel="column", ylabel="1/pixel")
    profile_ax.grid(color=FAINT, alpha=0.25)


def _draw_convergence(ax: Axes, result: Result) -> None:
    window = result.monitor["window"]
    marker = "o" if len(window) < 10 else ""
    ax.plot(window, result.monitor["misfit"], color=ACCENT, lw=1.2, marker=marker, label="data residual")
    ax.set(title="convergence", xlabel="window", ylabel="||b - Ax|| / ||b||", yscale="log")
    ax.grid(color=FAINT, alpha=0.25)
    beside = ax.twinx()
    beside.plot(window, result.monitor["change"], color=SECOND, lw=1.2, marker=marker, label="change per window")
    beside.set(ylabel="RMS change, 1/pixel", yscale="log")
    ax.legend([ax.lines[0], beside.lines[0]], ["data residual", "change per window"], frameon=False)


def _window(volume: npt.NDArray[np.float32]) -> tuple[float, float]:
    """Return grey limits that neither noise in the corners nor a few bright voxels decide."""
    low, most, high = np.percentile(volume, (0.5, 90.0, 99.8))
    high = min(high, BRIGHTEST * most) if most > low else high
    return float(low), float(high) if high > low else float(low) + 1.0
