"""The yardstick of image quality: a phantom, its exact line integrals, and two figures of merit.

The modified Shepp-Logan phantom (P. Toft, 1996) in TomoPy's orientation: an ellipse's x runs along the image's
rows and its y along the columns, both from -1 to 1 over the image.
"""

import numpy as np
import numpy.typing as npt
from skimage.metrics import structural_similarity

# density, half axes (x, y), middle (x, y), tilt in degrees
ELLIPSES = np.array(
    [
        (1.0, 0.69, 0.92, 0.0, 0.0, 0.0),
        (-0.8, 0.6624, 0.874, 0.0, -0.0184, 0.0),
        (-0.2, 0.11, 0.31, 0.22, 0.0, -18.0),
        (-0.2, 0.16, 0.41, -0.22, 0.0, 18.0),
        (0.1, 0.21, 0.25, 0.0, 0.35, 0.0),
        (0.1, 0.046, 0.046, 0.0, 0.1, 0.0),
        (0.1, 0.046, 0.046, 0.0, -0.1, 0.0),
        (0.1, 0.046, 0.023, -0.08, -0.605, 0.0),
        (0.1, 0.023, 0.023, 0.0, -0.606, 0.0),
        (0.1, 0.023, 0.046, 0.06, -0.605, 0.0),
    ]
)
SAMPLES = 4  # per pixel or bin and direction


def _grid(size: int) -> npt.NDArray[np.float64]:
    """Middles of the samples of `size` pixels, on [-1, 1]."""
    return (np.arange(size * SAMPLES) + 0.5) * 2 / (size * SAMPLES) - 1


def phantom(size: int) -> npt.NDArray[np.float32]:
    """Return the image (size, size), every pixel the mean of its samples."""
    x, y = _grid(size)[:, None], _grid(size)[None, :]
    image = np.zeros((x.size, y.size), np.float32)
    for density, half_x, half_y, middle_x, middle_y, tilt in ELLIPSES:
        cos, sin = np.cos(np.deg2rad(tilt)), np.sin(np.deg2rad(tilt))
        along = ((x - middle_x) * cos + (y - middle_y) * sin) / half_x
        across = ((y - middle_y) * cos - (x - middle_x) * sin) / half_y
        image[along**2 + across**2 <= 1] += density
    return image.reshape(size, SAMPLES, size, SAMPLES).mean(axis=(1, 3)).astype(np.float32)


def sinogram(size: int, angles: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Return the line integrals (angles, size) in pixels, axis in the middle, every bin the mean of its samples."""
    normal_x, normal_y = -np.sin(angles)[:, None], np.cos(angles)[:, None]
    integrals = np.zeros((len(angles), size * SAMPLES))
    for density, half_x, half_y, middle_x, middle_y, tilt in ELLIPSES:
        cos, sin = np.cos(np.deg2rad(tilt)), np.sin(np.deg2rad(tilt))
        distance = _grid(size) - (middle_x * normal_x + middle_y * normal_y)
        width = np.hypot(half_x * (normal_x * cos + normal_y * sin), half_y * (normal_y * cos - normal_x * sin))
        half_chord = np.sqrt(np.maximum(width**2 - distance**2, 0)) * half_x * half_y / width**2
        integrals += density * 2 * half_chord
    return (integrals.reshape(len(angles), size, SAMPLES).mean(axis=2) * (size / 2)).astype(np.float32)


def quality(image: npt.NDArray[np.float32], truth: npt.NDArray[np.float32]) -> tuple[float, float]:
    """Return (RMSE inside the circle of radius N/2 - 2 as a share of the range, SSIM with zeros outside it)."""
    size = truth.shape[0]
    offset = np.arange(size) - (size - 1) / 2
    circle = np.hypot(offset[:, None], offset) < size / 2 - 2
    image, truth = image * circle, truth * circle
    data_range = float(np.ptp(truth))
    rmse = float(np.sqrt(np.mean((image - truth)[circle] ** 2)))
    return rmse / data_range, float(structural_similarity(image, truth, data_range=data_range))
