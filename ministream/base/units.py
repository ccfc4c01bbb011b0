"""Sizes in words, for settings: "1GB", "64 MiB"."""

from typing import Annotated

from pydantic import BeforeValidator, ByteSize, TypeAdapter

_SIZE = TypeAdapter(ByteSize)


def _size(value: object) -> int:
    return int(_SIZE.validate_python(value))


Size = Annotated[int, BeforeValidator(_size)]
"""Bytes, given as a number or in words: "64MB", "1.5 GiB"."""
