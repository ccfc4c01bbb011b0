"""How good a reconstruction is: measures against a reference, and of convergence where there is none.

MSE, RMSE, PSNR and PCC are taken over all voxels that count; SSIM, MS-SSIM and UQI are made for images and taken as the
mean over slices. SSIM is scikit-image's, MS-SSIM is sewar's. UQI is written out here: sewar's divides sums by the
number of pixels in a window and then uses them as sums, which pushes every value towards 1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import uniform_filter
from sewar.full_ref import msssim
from skimage.metrics import structural_similarity

Image = npt.NDArray[np.floating]

MARGIN = 2.0
"""Pixels between the reconstruction circle and the edge of the image."""

SSIM_SIZE = 7
"""Side of scikit-image's SSIM window: smaller images have no SSIM."""

MS_SSIM_SIZE = 176
"""Least side for the five scales of MS-SSIM: 11 pixels after four halvings."""

UQI_SIZE = 8
"""Side of the UQI window, as in the paper."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """A reconstruction judged against a reference.

    Attributes
    ----------
    data_range
        Range of the reference that PSNR, SSIM and MS-SSIM are relative to.
    mse
        Mean squared difference.
    rmse
        Its root divided by `data_range`.
    psnr
        Peak signal-to-noise ratio, dB; infinite for equal images.
    ssim
        Structural similarity; None for slices of less than 7 x 7 pixels.
    ms_ssim
        Its multi-scale form; None for slices of less than 176 x 176 pixels.
    uqi
        Universal quality index (Wang and Bovik, "A universal image quality index", IEEE Signal Processing Letters 9,
        81, 2002); None for slices of less than 8 x 8 pixels.
    pcc
        Pearson's correlation coefficient.
    """

    data_range: float
    mse: float
    rmse: float
    psnr: float
    ssim: float | None
    ms_ssim: float | None
    uqi: float | None
    pcc: float


def compare(image: Image, reference: Image, *, data_range: float | None = None, circle: bool = True) -> Quality:
    """Judge `image` against `reference`, both (rows, columns) or (slices, rows, columns).

    Parameters
    ----------
    data_range
        What 100 % is; the reference's range (maximum less minimum) unless given.
    circle
        Judge what a scan determines: MSE, PSNR and PCC inside the circle of radius `columns / 2 - 2`, the others with
        both images zero outside it.

    Raises
    ------
    ValueError
        If the shapes differ, a value is not finite, or the reference is constant and no range is given.
    """
    images, references = _slices(image, "image"), _slices(reference, "reference")
    if images.shape != references.shape:
        raise ValueError(f"the image has the shape {image.shape}, its reference {reference.shape}: they must agree")
    counted = inside_circle(*images.shape[1:]) if circle else np.ones(images.shape[1:], np.bool_)
    images, references = np.where(counted, images, 0.0), np.where(counted, references, 0.0)
    span = float(references.max() - references.min()) if data_range is None else data_range
    if not span > 0.0:
        raise ValueError("the reference is constant, so it has no range to measure by: give a data range above 0")
    a, b = images[:, counted], references[:, counted]
    mse = float(np.mean((a - b) ** 2))
    return Quality(
        data_range=span,
        mse=mse,
        rmse=math.sqrt(mse) / span,
        psnr=10.0 * math.log10(span**2 / mse) if mse else math.inf,
        ssim=_mean_over_slices(_ssim, images, references, span, SSIM_SIZE),
        ms_ssim=_mean_over_slices(_ms_ssim, images, references, span, MS_SSIM_SIZE),
        uqi=_mean_over_slices(_uqi, images, references, span, UQI_SIZE),
        pcc=_pearson(a, b),
    )


def inside_circle(rows: int, columns: int) -> npt.NDArray[np.bool_]:
    """Return which pixels of a slice lie inside the circle of radius `columns / 2 - 2` about its middle."""
    y = np.arange(rows)[:, None] - (rows - 1) / 2
    x = np.arange(columns)[None, :] - (columns - 1) / 2
    return np.asarray(y**2 + x**2 < (columns / 2 - MARGIN) ** 2)


def relative_change(new: Image, old: Image) -> float:
    """Return ||new - old|| / ||new||, or 0 if both are zero: the convergence from one volume to the next."""
    size = float(np.linalg.norm(np.ravel(new)))
    change = float(np.linalg.norm(np.ravel(new) - np.ravel(old)))
    return change / size if size else math.inf if change else 0.0


def _slices(values: Image, name: str) -> npt.NDArray[np.float64]:
    array = np.asarray(values, np.float64)
    if array.ndim not in (2, 3) or not array.size:
        raise ValueError(f"the {name} has the shape {array.shape}: give (rows, columns) or (slices, rows, columns)")
    if not np.isfinite(array).all():
        raise ValueError(f"the {name} has values that are not finite: it cannot be judged")
    return array.reshape(-1, *array.shape[-2:])


def _mean_over_slices(
    measure: Callable[[Image, Image, float], float], images: Image, references: Image, span: float, least: int
) -> float | None:
    if min(images.shape[1:]) < least:
        return None
    return float(np.mean([measure(a, b, span) for a, b in zip(images, references, strict=True)]))


def _ssim(image: Image, reference: Image, span: float) -> float:
    return float(structural_similarity(image, reference, data_range=span))  # type: ignore[no-untyped-call]


def _ms_ssim(image: Image, reference: Image, span: float) -> float:
    return float(msssim(reference, image, MAX=span))


def _uqi(image: Image, reference: Image, _span: float) -> float:
    """Mean over all windows of 4 cov(a, b) mean(a) mean(b) / ((var a + var b) (mean(a)^2 + mean(b)^2))."""
    mean_a, mean_b = uniform_filter(image, UQI_SIZE), uniform_filter(reference, UQI_SIZE)
    covariance = uniform_filter(image * reference, UQI_SIZE) - mean_a * mean_b
    variances = uniform_filter(image**2, UQI_SIZE) - mean_a**2 + uniform_filter(reference**2, UQI_SIZE) - mean_b**2
    luminance = mean_a**2 + mean_b**2
    scale = float(max(luminance.max(), np.finfo(np.float64).tiny))
    flat, dark = variances <= 1e-12 * scale, luminance <= 1e-12 * scale
    structure = np.where(flat, 1.0, 2.0 * covariance / np.where(flat, 1.0, variances))
    index = structure * np.where(dark, 1.0, 2.0 * mean_a * mean_b / np.where(dark, 1.0, luminance))
    whole = slice(UQI_SIZE // 2, 1 - UQI_SIZE // 2)  # where the window lies within the image
    return float(index[whole, whole].mean())


def _pearson(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """Return the correlation; 1 for equal images, 0 if one of two different ones is constant."""
    a, b = a.ravel() - a.mean(), b.ravel() - b.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale else float(np.array_equal(a, b))
