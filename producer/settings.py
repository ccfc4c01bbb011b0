"""The options of the producer service."""

from ministream.base.settings import Settings, option


class ProducerSettings(Settings):
    """Play a scan to workers that connect, and stay until told to stop.

    Acquisition and distributor are ruled by the sections daq and dist of the settings file, and by their environment.
    """

    bind: str | None = option(
        None, help="Entrance: where workers connect, worker k at port + k; else as section dist says.", group="Entrance"
    )
    workers: int | None = option(None, ge=1, help="How many workers; else as section dist says.", group="Entrance")
    health: str = option(
        "127.0.0.1:8089", help="HOST:PORT of /healthz and /metrics; port 0: any free one.", group="Watching"
    )
