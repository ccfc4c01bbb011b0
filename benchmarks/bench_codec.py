"""How fast a frame becomes a message and back, against the `flatbuffers` package and a plain copy.

Prints the median of interleaved rounds and ratios to the peers of the same run.
"""

import statistics
import time
from collections.abc import Callable

import flatbuffers
import numpy as np

from aps_mini_apps.frames import Frame, FrameKind
from aps_mini_apps.wire import timage

ROUNDS = 25
FRAME = Frame(kind=FrameKind.PROJECTION, pixels=np.arange(2048 * 2048, dtype=np.uint16).reshape(2048, 2048))


def encode_with_the_package() -> bytes:
    """Build the same seven fields with `flatbuffers.Builder`."""
    builder = flatbuffers.Builder(0)
    pixels = builder.CreateNumpyVector(FRAME.pixels.view(np.uint8).ravel())
    builder.StartObject(7)
    builder.PrependUOffsetTRelativeSlot(6, pixels, 0)
    builder.PrependInt8Slot(5, 1, 0)
    builder.Prep(4, 12)
    for size in (2048, 2048, 1):
        builder.PrependInt32(size)
    builder.PrependStructSlot(1, builder.Offset(), 0)
    builder.Finish(builder.EndObject())
    return bytes(builder.Output())


def main() -> None:
    """Measure, and print a table."""
    message = timage.encode(FRAME)
    work: dict[str, Callable[[], object]] = {
        "copy of the pixels": FRAME.pixels.copy,
        "encode": lambda: timage.encode(FRAME),
        "encode, flatbuffers package": encode_with_the_package,
        "decode, checksum verified": lambda: timage.decode(message, strict=True),
    }
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(ROUNDS):
        for name, function in work.items():
            began = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print("2048 x 2048 uint16 (8 MiB)")
    for name, seconds in medians.items():
        print(f"  {name:28} {seconds * 1e3:8.2f} ms   {seconds / medians['copy of the pixels']:6.2f} x a copy")
    ratio = medians["encode, flatbuffers package"] / medians["encode"]
    print(f"  encode is {ratio:.1f} times as fast as the flatbuffers package")


if __name__ == "__main__":
    main()
