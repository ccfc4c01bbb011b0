"""The options of `ministream run` and `ministream client`.

An option that is not given here is left to the program that it belongs to: to its section of the settings
file, its environment variables, its default.
"""

from typing import Literal

from aps_mini_apps.sirt.settings import Center, Parameters
from ministream.base.settings import Settings, option
from ministream.base.units import Duration, Size
from receiver.settings import ACCESS, PORT


class RunSettings(Settings):
    """Stream a scan through acquisition, distribution and reconstruction, and look at the result."""

    file: str = option("", help="DXchange HDF5 file; empty: a phantom.")
    output: str = option("output", names="-o", help="Folder for reconstructions, preview.png and report.html.")
    center: Center | None = option(
        None, names="-c", help="Rotation axis, columns; auto (default) finds it first.", group="Reconstruction"
    )
    algorithm: str | None = option(
        None, help="sirt (default), another name, or a Python file, watched for edits.", group="Reconstruction"
    )
    parameter: Parameters | None = option(
        None,
        names="--parameters",
        help="Setting of the algorithm, key=value; may be repeated.",
        group="Reconstruction",
    )
    window_length: int | None = option(
        None, ge=1, help="Projections reconstructed together (32).", group="Reconstruction"
    )
    window_step: int | None = option(None, ge=1, help="New projections per window (1).", group="Reconstruction")
    window_iter: int | None = option(None, ge=1, help="Updates per window (1).", group="Reconstruction")
    write_freq: int | None = option(None, ge=1, help="Write every so many windows.", group="Reconstruction")
    backend: str | None = option(None, help="auto, numba, cuda, numpy, astra or tomopy.", group="Reconstruction")
    thread: int | None = option(
        None, names="-t --threads", ge=1, help="Threads per worker (cores / workers).", group="Reconstruction"
    )
    workers: int | None = option(
        None, ge=1, help="Reconstruction processes; each takes a slab of rows.", group="Reconstruction"
    )
    remove_stripes: bool | None = option(None, help="Subtract stripes (on for the phantom).", group="Correction")

    frame_rate: float | None = option(None, ge=0, help="Frames per second; 0: as fast as they are taken.", group="Scan")
    first_row: int | None = option(None, names="--beg_sinogram", ge=0, help="First detector row.", group="Scan")
    rows: int | None = option(None, names="--num_sinograms", ge=0, help="Detector rows; 0: all.", group="Scan")
    columns: int | None = option(None, ge=8, help="Phantom: detector columns.", group="Scan")
    projections: int | None = option(None, ge=2, help="Phantom: projections.", group="Scan")
    exchange: str | None = option(None, help="HDF5 group of the scan: exchange, exchange1, …", group="Scan")
    links: Literal["push", "aps"] = option(
        "push", help="push: our lossless links; aps: PUB/SUB and TMQ, as the APS mini-apps.", group="Links"
    )
    tunnel: bool = option(
        False, help="Put two control servers and an encrypted tunnel before the reconstruction.", group="Links"
    )
    proxy: str = option("haproxy", help="Kind of the tunnel's proxies: haproxy, nginx, stunnel, ssh.", group="Links")
    timeout: float | None = option(
        None, ge=0, help="Seconds that a program waits for its neighbour (60); 0: for ever.", group="Links"
    )


class ClientSettings(Settings):
    """Open a tunnel between two facilities, hand it to a receiver, and follow the scan that comes through it."""

    producer_s2cs: str = option("localhost:5000", help="Control server of the producer's side.", group="Tunnel")
    producer_access: str = option("producer-access", help="Folder with its `ca.crt` and your `token`.", group="Tunnel")
    consumer_s2cs: str = option("localhost:6000", help="Control server of the consumer's side.", group="Tunnel")
    consumer_access: str = option("consumer-access", help="Folder with its `ca.crt` and your `token`.", group="Tunnel")
    target: str = option(
        "127.0.0.1:5560", help="The distributor, as the producer's gateway reaches it: its first worker's HOST:PORT.",
        group="Tunnel",
    )  # fmt: skip
    workers: int | None = option(None, ge=1, help="Workers, on ports from that one on (1).", group="Tunnel")
    plaintext: bool = option(False, help="Let everybody read what passes between the gateways.", group="Tunnel")
    rate: Size = option(0, ge=0, help="Limit in bytes a second; 0: none.", group="Tunnel")

    receiver: str = option(f"https://127.0.0.1:{PORT}", help="URL of the receiver.", group="Receiver")
    receiver_access: str = option(ACCESS, help="Folder with its `receiver.crt` and `token`.", group="Receiver")
    plaintext_receiver: bool = option(
        False, help="Let its URL begin with http://: the token travels in the clear.", group="Receiver"
    )

    center: Center | None = option(
        None, names="-c", help="Rotation axis, columns; auto finds it.", group="Reconstruction"
    )
    window_length: int | None = option(None, ge=1, help="Projections reconstructed together.", group="Reconstruction")
    window_step: int | None = option(None, ge=1, help="New projections per window.", group="Reconstruction")
    window_iter: int | None = option(None, ge=1, help="SIRT updates per window.", group="Reconstruction")
    write_freq: int | None = option(None, ge=1, help="Write every so many windows.", group="Reconstruction")
    backend: str | None = option(None, help="numba or numpy.", group="Reconstruction")

    timeout: Duration = option(60.0, gt=0, help="Time in which the services must be ready.", group="Waiting")
    away: Duration = option(
        15.0, gt=0, help="Time for which the receiver may be away before the run is given up.", group="Waiting"
    )
