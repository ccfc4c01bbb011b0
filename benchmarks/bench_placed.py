"""How fast the bits of a file are counted while it comes in: against a copy of it, and against Python's own count.

The content passes by in the blocks that uploads are read in: once from memory that the processor's cache does not hold,
which is the worst that can happen, and once from a block that it does hold, as it does what has just come in.
"""

import numpy as np
from results import Contestant, compete, record

from delivery.placed.disk import BLOCK
from delivery.placed.rules import Bits

SIZE = 256 << 20
ROUNDS = 15


def main() -> None:
    """Measure, and keep the result."""
    content = memoryview(np.random.default_rng(1).bytes(SIZE))
    blocks = [content[start : start + BLOCK] for start in range(0, SIZE, BLOCK)]
    few = blocks[: len(blocks) // 16]
    target = np.empty(SIZE, np.uint8)

    def count() -> None:
        judge = Bits()
        for block in blocks:
            judge.see(block)

    def count_cached() -> None:
        judge = Bits()
        for _ in blocks:
            judge.see(blocks[0])

    def copy() -> None:
        for number, block in enumerate(blocks):
            target[number * BLOCK : (number + 1) * BLOCK] = np.frombuffer(block, np.uint8)

    def python() -> None:
        for block in few:
            int.from_bytes(block).bit_count()

    contestants = {
        "ours": Contestant(count, SIZE / 1e9),
        "copy": Contestant(copy, SIZE / 1e9),
        "int.bit_count": Contestant(python, SIZE / 16 / 1e9),
    }
    cached = {"": Contestant(count_cached, SIZE / 1e9)}
    record(
        [
            compete("placed_count_bits", "GB/s", contestants, ROUNDS),
            compete("placed_count_bits_cached", "GB/s", cached, ROUNDS),
        ]
    )


if __name__ == "__main__":
    main()
