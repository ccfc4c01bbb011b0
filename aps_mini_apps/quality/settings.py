"""The options of `ministream quality`."""

from ministream.base.settings import Settings, option


class QualitySettings(Settings):
    """Judge a reconstruction against a reference, or say how far it has converged."""

    image: str = option("", help="HDF5 file of the reconstruction.")
    reference: str = option("", help="HDF5 file of what it should be; empty: only the convergence is told.")
    dataset: str = option("/data", help="Dataset of the volume in the reconstruction's file.")
    reference_dataset: str = option("", help="The same in the reference's file; empty: as in the reconstruction's.")
    data_range: float | None = option(None, gt=0, help="What 100 % is; else the reference's range.")
    circle: bool = option(True, help="Judge what lies inside the reconstruction circle only.")
