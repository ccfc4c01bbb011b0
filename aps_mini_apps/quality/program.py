"""`ministream quality A.h5 B.h5`: one line with every measure."""

from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from aps_mini_apps.quality.measures import compare
from aps_mini_apps.quality.settings import QualitySettings
from ministream.base.errors import UserError
from ministream.base.log import get_logger

CONVERGENCE = ("scan", "state", "window", "angles_seen", "center", "change", "misfit", "frames_lost")
"""Attributes of an output file that tell how far it has come."""


def main(settings: QualitySettings) -> int:
    """Log the measures; what an output file says of its convergence is logged with them."""
    log = get_logger()
    image, about = read_volume(settings.image, settings.dataset)
    if known := {name: about[name] for name in CONVERGENCE if name in about}:
        log.info("convergence", file=settings.image, **known)
    elif not settings.reference:
        raise UserError(f"{settings.image} says nothing of its convergence: give a reference file to compare it with")
    if settings.reference:
        reference, _ = read_volume(settings.reference, settings.reference_dataset or settings.dataset)
        try:
            quality = compare(image, reference, data_range=settings.data_range, circle=settings.circle)
        except ValueError as error:
            raise UserError(f"{settings.image} and {settings.reference}: {error}") from error
        log.info("quality", image=settings.image, reference=settings.reference, **asdict(quality))
    return 0


def read_volume(path: str, dataset: str) -> tuple[npt.NDArray[np.float32], dict[str, object]]:
    """Return a volume (slices, rows, columns) or image and the file's attributes.

    Raises
    ------
    UserError
        If there is no such file or dataset, or it does not hold numbers.
    """
    if not path:
        raise UserError("no file was given: name the reconstruction to judge")
    if not Path(path).exists():
        raise UserError(f"{path}: no such file; give the path of an HDF5 file")
    try:
        with h5py.File(path, "r") as file:
            found = file.get(dataset)
            if not isinstance(found, h5py.Dataset) or found.dtype.kind not in "iuf":
                raise UserError(
                    f"{path} has no volume {dataset}: it holds {', '.join(file) or 'nothing'}; give --dataset"
                )
            about = {
                name: value.item() if isinstance(value, np.generic) else value for name, value in file.attrs.items()
            }
            return found[()].astype(np.float32), about
    except OSError as error:
        raise UserError(f"{path} cannot be read as HDF5: {' '.join(str(error).split())}") from error
