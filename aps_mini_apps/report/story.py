"""What is known of a run when it has ended."""

from collections.abc import Mapping, Sequence
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


def verdict_on(state: str, lost: int) -> str:
    """Return in a sentence how a scan has ended; `state` is "complete" or why it is not."""
    loss = "no frame was lost" if not lost else f"{lost} frames were lost"
    return f"The scan is complete; {loss}." if state == "complete" else f"The scan is not complete: {state}; {loss}."


def summary_lines(verdict: str, figures: Sequence[tuple[str, str]], *hints: str) -> list[str]:
    """Return the end of the story for a terminal: the verdict, the figures in a column, what to do next."""
    width = max((len(name) for name, _ in figures), default=0)
    return ["", verdict, *(f"  {name:<{width}}  {value}" for name, value in figures), *hints]
