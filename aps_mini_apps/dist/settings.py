"""The options of `ministream dist`."""

from typing import Literal

from ministream.base.settings import Settings, option


class DistSettings(Settings):
    """Correct the frames of a scan, cut them into row slabs and hand these to the workers."""

    source: str = option("tcp://127.0.0.1:50000", help="Our acquisition: its endpoint (push link).", group="Input")
    data_source_addr: str = option("", help="An acquisition that publishes (old link, SUB).", group="Input")
    data_source_hwm: int = option(0, ge=0, help="Frames queued on the old link; 0: no limit.", group="Input")
    data_source_synch_addr: str = option("", help="Synch address of the old link (REQ).", group="Input")
    timeout: float = option(
        60.0, ge=0, help="Seconds without a frame or a worker before giving up; 0: never.", group="Input"
    )

    bind: str = option(
        "tcp://127.0.0.1:5560", help="Where our workers connect (push link): worker k at port + k.", group="Output"
    )
    my_distributor_addr: str = option(
        "", help="Where workers that speak TMQ connect (old link): base port.", group="Output"
    )
    workers: int = option(
        1, ge=1, help="Workers on the push link; TMQ workers say themselves how many.", group="Output"
    )
    my_publisher_addr: str = option("", help="Also publish corrected projections here (PUB).", group="Output")
    my_publisher_freq: int = option(1, ge=1, help="Publish every so many projections.", group="Output")

    beg_sinogram: int = option(0, names="--first-row", ge=0, help="First detector row to distribute.", group="Rows")
    num_sinograms: int = option(0, names="--rows", ge=0, help="Rows to distribute; 0: all.", group="Rows")
    num_columns: int = option(0, ge=0, help="Columns that are expected; 0: whatever comes.", group="Rows")

    normalize: bool = option(True, help="Divide by the flats, less the darks.", group="Correction")
    mlog: bool = option(True, help="Take -log: line integrals, not transmission.", group="Correction")
    remove_invalids: bool = option(True, help="Replace pixels that hold no measurement.", group="Correction")
    remove_stripes: bool = option(False, help="Subtract stripes, estimated over the angles seen.", group="Correction")
    stripe_warm_up: int = option(16, ge=1, help="Projections held until stripes can be told.", group="Correction")
    thread: int = option(1, names="-t --threads", ge=1, help="Threads of the correction.", group="Correction")
    degree_to_radian: bool = option(
        True,
        help="Angles come in degrees; --no- passes them on as they are (the old distributor's default).",
        group="Correction",
    )
    early: Literal["hold", "refuse"] = option(
        "hold", help="A projection before flats and darks: hold it, or refuse.", group="Correction"
    )
    hold_limit: int = option(256, ge=1, help="Projections held at most.", group="Correction")

    uint8_to_float32: bool = option(False, help="Pixels without a declared type are uint8.", group="Pixels")
    uint16_to_float32: bool = option(False, help="Pixels without a declared type are uint16.", group="Pixels")
    cast_to_float32: bool = option(False, help="Pixels without a declared type are float32.", group="Pixels")
    check_seq: bool = option(False, help="At the end, report numbers that never came.", group="Pixels")
    skip_serialize: bool = option(False, help="Only receive and count (for rate tests).", group="Pixels")
