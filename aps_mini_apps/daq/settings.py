"""The options of `ministream daq`."""

from pathlib import Path
from typing import Literal

from ministream.base.errors import UserError
from ministream.base.settings import Settings, option

SourceName = Literal["hdf5", "phantom", "random"]
PixelType = Literal["native", "float32"]

_PUBSUB = {"publisher_addr", "publisher_hwm", "synch_addr", "synch_count"}
"""The old link's options: giving one of them chooses it."""


class DaqSettings(Settings):
    """Send the frames of a scan, from a file or made up, to the distributor."""

    source: SourceName | None = option(
        None,
        help="hdf5, phantom or random; else --mode decides, else a --file if given, else phantom.",
        group="Scan",
    )
    mode: int | None = option(
        None, ge=0, le=2, help="Source by its old number: 0 detector, 1 file, 2 random.", group="Scan"
    )
    image_pv: str = option("", help="EPICS name of the detector's images (mode 0).", group="Scan")
    file: Path | None = option(None, names="--simulation_file", help="DXchange HDF5 file.", group="Scan")
    exchange: str = option(
        "exchange", help="Group of the file that holds the scan: exchange, exchange1, …", group="Scan"
    )
    first_row: int = option(0, names="--beg_sinogram", ge=0, help="First row to read from a file.", group="Scan")
    rows: int = option(
        0,
        names="--num_sinograms",
        ge=0,
        help="Rows; 0: all of a file, 16 of the phantom, 2048 random ones.",
        group="Scan",
    )
    columns: int | None = option(
        None,
        names="--num_sinogram_columns",
        gt=0,
        help="Columns of phantom (256) or random (2048).",
        group="Scan",
    )
    projections: int | None = option(
        None,
        names="--num_sinogram_projections",
        gt=0,
        help="Projections of phantom (180) or random (1440).",
        group="Scan",
    )
    center: float | None = option(
        None, gt=0, help="Rotation axis to write into the frames, columns; else the source's.", group="Scan"
    )
    scan: str = option("", help="Identity of the scan; made up from the time unless given.", group="Scan")

    seed: int = option(0, ge=0, help="Seed of phantom and random.", group="Phantom")
    span: float = option(180.0, gt=0, le=360, help="Angles go from 0 to this, degrees.", group="Phantom")
    photons: float = option(20_000.0, gt=0, le=59_000, help="Counts of the brightest flat.", group="Phantom")
    flats: int = option(10, ge=1, help="Number of flats; of random too.", group="Phantom")
    darks: int = option(10, ge=1, help="Number of darks; of random too.", group="Phantom")
    hot_pixels: int = option(5, ge=0, help="Number of saturated pixels.", group="Phantom")
    stripes: int = option(3, ge=0, help="Number of stripes, which flats do not show.", group="Phantom")
    stripe_amplitude: float = option(0.05, ge=0, lt=1, help="Largest gain error of a stripe.", group="Phantom")
    center_offset: float = option(3.0, help="Rotation axis, columns right of the middle.", group="Phantom")

    repeats: int = option(
        1, names="--d_iteration", ge=1, help="How often the projections are sent.", group="Order and pace"
    )
    interleave: bool = option(
        False, help="Projections i, i+n, i+2n, … with n = projections/16.", group="Order and pace"
    )
    frame_rate: float | None = option(
        None,
        ge=0,
        help="Projections per second, 0: as fast as they are taken; else --projection-sleep decides.",
        group="Order and pace",
    )
    projection_sleep: float = option(0.6, ge=0, help="Seconds from projection to projection.", group="Order and pace")
    iteration_sleep: float = option(0.0, ge=0, help="Seconds between repeats.", group="Order and pace")

    bind: str = option("tcp://127.0.0.1:50000", help="Where our distributor connects (push link).", group="Output")
    publisher_addr: str = option("tcp://*:50000", help="Where subscribers connect (old link).", group="Output")
    publisher_hwm: int = option(0, ge=0, help="Frames queued on the old link, 0: no limit.", group="Output")
    synch_addr: str = option("", help="Where subscribers say that they are there (old link).", group="Output")
    synch_count: int = option(1, ge=1, help="Synch messages to wait for (old link).", group="Output")
    pixel_type: PixelType | None = option(
        None, help="native or float32; else native on our link, float32 on the old one.", group="Output"
    )
    timeout: float = option(60.0, ge=0, help="Seconds without a reader before giving up; 0: never.", group="Output")

    def chosen_source(self) -> SourceName:
        """Return where the frames come from.

        Raises
        ------
        UserError
            If the options lead to none.
        """
        by_mode: dict[int, SourceName] = {1: "hdf5", 2: "random"}
        if self.source is None and self.mode == 0:
            raise UserError(
                "--mode 0: reading a detector through EPICS is not built yet; "
                "play a file (--file) or a phantom (--source phantom)"
            )
        chosen = self.source or by_mode.get(self.mode or 0) or ("hdf5" if self.file else "phantom")
        if chosen == "hdf5" and self.file is None:
            raise UserError("no file was given: name the scan to play by --file")
        return chosen

    def uses_pubsub(self) -> bool:
        """Whether an option of the old link (PUB/SUB) was given, or --mode, which is an old option, without --bind."""
        given = self.model_fields_set
        return bool(_PUBSUB & given) or ("mode" in given and "bind" not in given)

    def chosen_pixel_type(self) -> PixelType:
        """Return the pixel type on the wire; old readers expect float32 of a file, and uint16 of random frames."""
        old = self.uses_pubsub() and self.chosen_source() != "random"
        return self.pixel_type or ("float32" if old else "native")

    def interval(self) -> float:
        """Return the seconds from projection to projection; 0 is as fast as they are taken."""
        if self.frame_rate is None:
            return self.projection_sleep
        return 1 / self.frame_rate if self.frame_rate else 0.0
