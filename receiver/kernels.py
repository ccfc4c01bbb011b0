"""`python -m receiver.kernels`: compile the reconstruction's kernels into Numba's cache, while nothing else is to do.

Compiling takes half a minute where that cache is empty: a worker that finds it full has them in a second. It is a
program of its own so that the receiver need not hold Numba in memory.
"""

import time

from aps_mini_apps.sirt.projectors import make_projector
from ministream.base.cli import add_program, new_app
from ministream.base.log import get_logger
from ministream.base.settings import Settings, option

SMALL = 8
"""Columns of the detector for which they are compiled: the code is the same for any."""


class KernelSettings(Settings):
    """Compile the kernels for slabs of a size."""

    slices: int = option(16, ge=1, help="Slices of a worker.")


def main(settings: KernelSettings) -> int:
    """Compile, and say how long it took."""
    began = time.monotonic()
    make_projector("numba", settings.slices, SMALL).warm_up()
    get_logger().info("kernels ready", slices=settings.slices, seconds=round(time.monotonic() - began, 2))
    return 0


app = new_app("Compile the kernels of the reconstruction.")
add_program(app, "kernels", KernelSettings, main)

if __name__ == "__main__":
    app()
