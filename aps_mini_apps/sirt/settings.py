"""The options of `ministream sirt`."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from aps_mini_apps.geometry import LeaningAxis
from aps_mini_apps.sirt.projectors import Backend
from ministream.base.settings import Settings, option
from ministream.base.units import Size


def _center(value: object) -> object:
    if isinstance(value, str) and ":" in value:
        LeaningAxis.parse(value)
        return value
    return value if value == "auto" else float(str(value))


def _pairs(value: object) -> object:
    """Return `key=value` texts, a list of them or one with spaces between, as a mapping."""
    if isinstance(value, str):
        value = value.split()
    if not isinstance(value, list | tuple):
        return value
    pairs = [str(text).partition("=") for text in value]
    if bad := [key for key, equals, _ in pairs if not equals]:
        raise ValueError(f"{bad[0]!r} has no value: write {bad[0]}=VALUE")
    return {key.strip(): text.strip() for key, _, text in pairs}


def leans(center: object) -> bool:
    """Whether a rotation axis is given whose centre differs by row."""
    return isinstance(center, str) and center != "auto"


Center = Annotated[float | str, BeforeValidator(_center)]
Parameters = Annotated[dict[str, Any], BeforeValidator(_pairs)]


class SirtSettings(Settings):
    """Reconstruct one slab while its projections arrive: sliding-window SIRT, or another algorithm."""

    algorithm: str = option(
        "sirt",
        help="Name of an algorithm (`ministream algorithms` lists them), or a Python file, watched for edits.",
        group="Algorithm",
    )
    parameter: Parameters = option(
        {}, names="--parameters", help="Setting of the algorithm, key=value; may be repeated.", group="Algorithm"
    )

    window_length: int = option(32, ge=1, help="Projections that are reconstructed together.", group="Window")
    window_step: int = option(1, ge=1, help="New projections per window.", group="Window")
    window_iter: int = option(1, ge=1, help="Updates per window.", group="Window")

    center: Center = option(
        0.0,
        names="-c",
        help="Rotation axis, columns; A:B from first to last row; 0 takes it from the stream, auto finds it.",
        group="Geometry",
    )
    model: Literal["exact", "joseph"] = option(
        "exact",
        help="Weight of a pixel on a ray: exact intersection length, or Joseph's interpolation.",
        group="Geometry",
    )
    norm: Literal["squared", "plain"] = option(
        "squared", help="Row norm: sum of squared lengths (Trace, TomoPy), or of lengths (ASTRA).", group="Geometry"
    )
    history: Size = option(
        "1GB", help="How much of the scan is kept for a new start with --center auto.", group="Geometry"
    )
    backend: Backend = option(
        "numba",
        help="numba (fast), cuda (a GPU), auto (cuda where a GPU answers, else numba), numpy (the reference), astra or"
        " tomopy (those packages).",
        group="Engine",
    )
    circle: float | None = option(
        None,
        gt=0.0,
        help="Reconstruct within a circle alone, its diameter as a share of the detector's width.",
        group="Geometry",
    )
    half: bool = option(False, help="Store volumes in 16 bits (cuda only): half the memory.", group="Engine")
    thread: int = option(1, names="-t --threads", ge=1, help="Threads of the numba back end.", group="Engine")

    recon_output_dir: str = option(".", names="--output", help="Folder of NNNNNN-recon.h5.", group="Output")
    recon_output_path: str = option(
        "", names="-o --reconOutputPath", help="Also write the last window to this file.", group="Output"
    )
    recon_dataset_path: str = option(
        "/data", names="-r --reconDatasetPath", help="Dataset of the volume in each file.", group="Output"
    )
    write_freq: int = option(
        10000, ge=1, help="Write every so many windows; the last is always written.", group="Output"
    )
    pub_addr: str = option(
        "tcp://*:52000", help="Where volumes are published (ZeroMQ PUB); empty: nowhere.", group="Output"
    )
    pub_freq: int = option(10000, ge=1, help="Publish every so many windows.", group="Output")

    source: str = option(
        "tcp://127.0.0.1:5560", help="Our distributor: its endpoint for this worker (push link).", group="Input"
    )
    dest_host: str = option("", help="A distributor that speaks TMQ (old link): its host.", group="Input")
    dest_port: int = option(5560, ge=1, le=65535, help="Its base port; this worker uses base + rank.", group="Input")
    rank: int = option(0, ge=0, help="This worker's number, from 0.", group="Input")
    workers: int = option(1, ge=1, help="How many workers share the rows.", group="Input")
    notes: bool = option(True, help="Log what acquisition and distributor say (push link).", group="Input")
    scan: str = option("", help="Identity of the scan, where the link does not carry it.", group="Input")
    timeout: float = option(60.0, ge=0, help="Seconds without a projection before giving up; 0: never.", group="Input")
