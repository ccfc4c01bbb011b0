"""How fast a frame becomes a message and back, against the `flatbuffers` package and a plain copy.

The frame has 2048 x 2048 pixels of 16 bits, 8 MiB.
"""

import flatbuffers
import numpy as np
from results import Contestant, compete, record

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
    """Measure, print and record."""
    message, size = timage.encode(FRAME), FRAME.pixels.nbytes / 1e9
    copy = Contestant(FRAME.pixels.copy, size)
    encoding = {
        "ours": Contestant(lambda: timage.encode(FRAME), size),
        "flatbuffers package": Contestant(encode_with_the_package, size),
        "copy of the pixels": copy,
    }
    decoding = {
        "ours, checksum verified": Contestant(lambda: timage.decode(message, strict=True), size),
        "copy of the pixels": copy,
    }
    record(
        [
            compete("codec_encode_2048x2048_u16", "GB/s", encoding, ROUNDS),
            compete("codec_decode_2048x2048_u16", "GB/s", decoding, ROUNDS),
        ]
    )


if __name__ == "__main__":
    main()
