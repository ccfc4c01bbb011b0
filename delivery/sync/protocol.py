"""What server and broker say to each other beside plain HTTP; a side that knows none of it works all the same.

Broker: `ACKNOWLEDGES` with any value if it will say what it has got, `Prefer: wait=SECONDS` to be answered later if
there is nothing new now (RFC 7240). Server: `BATCH`, under whose name the broker puts its `Acknowledgement` to
``{API_URL}/{project}/{ext}/batches/{batch}``.
"""

from pydantic import BaseModel, ConfigDict

ACKNOWLEDGES = "Delivery-Acknowledges"
BATCH = "Delivery-Batch"


class Acknowledgement(BaseModel):
    """What a broker has written and verified: BLAKE3 in hexadecimal, by name of the file."""

    model_config = ConfigDict(extra="forbid")

    blake3: dict[str, str]
