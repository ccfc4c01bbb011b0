"""How chunks and files are proved.

The ledger keeps the BLAKE3 of each chunk. The **tree digest** of a file is the BLAKE3 of its chunks' BLAKE3s, one after
the other: both sides have it the moment the last chunk is there, whatever their order, and it outlives restarts. (S3's
composite checksums are made in this way.) It goes with a chunk size.

A digest of the plain bytes must be taken in order, and no library writes down one that is half-way: `along` takes it
behind the chunks, and begins again after a restart.
"""

import hashlib
import hmac
from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple, Protocol

from blake3 import blake3


class Kind(StrEnum):
    """What the digest of a whole file is; `HMAC` is what old clients call SHA-256."""

    TREE = "tree"
    SHA256 = "sha256"
    BLAKE3 = "blake3"
    HMAC = "hmac-sha256"


class Proof(NamedTuple):
    """The digest that a client gives: what kind it is of, in hexadecimal."""

    kind: Kind
    digest: str


class Hasher(Protocol):
    """As in hashlib."""

    def update(self, data: bytes | bytearray | memoryview, /) -> object:
        """Take in more bytes."""
        ...

    def hexdigest(self) -> str:
        """Return the digest of what was taken in."""
        ...


def new_hasher(kind: Kind, key: bytes = b"") -> Hasher:
    """Return a hasher of plain bytes; `key` is that of old clients."""
    if kind == Kind.HMAC:
        return hmac.new(key, digestmod=hashlib.sha256)
    return hashlib.sha256() if kind == Kind.SHA256 else blake3()


def leaf(pieces: Iterable[bytes | bytearray | memoryview]) -> bytes:
    """Return the BLAKE3 of a chunk, 32 bytes."""
    hasher = blake3()
    for piece in pieces:
        hasher.update(piece)
    return hasher.digest()


def tree(leaves: Iterable[bytes]) -> str:
    """Return the tree digest over chunks' BLAKE3s, in hexadecimal."""
    return blake3(b"".join(leaves)).hexdigest()


def is_same(given: str, found: str) -> bool:
    """Compare hexadecimal digests."""
    return hmac.compare_digest(given.strip().lower().encode(), found.encode())


def tree_of(blocks: Iterable[bytes], chunk_size: int) -> str:
    """Return the tree digest of bytes that come in blocks of any length."""
    leaves, hasher, room = [], blake3(), chunk_size
    for block in blocks:
        rest = memoryview(block)
        while len(rest) >= room:
            leaves.append(hasher.update(rest[:room]).digest())
            rest, hasher, room = rest[room:], blake3(), chunk_size
        hasher.update(rest)
        room -= len(rest)
    if room < chunk_size:
        leaves.append(hasher.digest())
    return tree(leaves)
