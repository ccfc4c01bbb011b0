"""How many bits of a block are ones: the processor's own instruction, through numpy."""

import numpy as np

PIECE = 1 << 15
"""Words counted at a time: their counts stay in the processor's cache until they are added up."""


def count_ones(block: bytes | memoryview) -> int:
    """Return the number of one bits in `block`, of any length and alignment."""
    words, rest = divmod(len(block), 8)
    counts = np.empty(min(words, PIECE), np.uint8)
    ones = int.from_bytes(block[len(block) - rest :]).bit_count()
    for start in range(0, words, PIECE):
        piece = np.frombuffer(block, np.uint64, min(PIECE, words - start), 8 * start)
        ones += int(np.bitwise_count(piece, out=counts[: len(piece)]).sum(dtype=np.uint32))
    return ones
