"""What is known of a run when it has ended."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass
class Story:
    """What is known of a run when it has ended.

    Attributes
    ----------
    scan, source
        Identity of the scan, and where its frames came from.
    settings
        What the user chose.
    seconds
        From the start of the first program to the end of the last.
    services
        The last event `scan ended` of each program, by its name.
    tunnel
        Figures of the tunnel that the scan went through; empty without one.
    dataset
        Where the volume is in its file.
    truth
        What the volume should be (the phantom), or None.
    """

    scan: str
    source: str
    settings: Mapping[str, Any]
    seconds: float = 0.0
    services: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    tunnel: Mapping[str, Any] = field(default_factory=dict)
    dataset: str = "/data"
    truth: npt.NDArray[np.float32] | None = None
