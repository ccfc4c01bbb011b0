"""Sizes and times in words, for settings: "1GB", "2 days"."""

import re
from typing import Annotated

from pydantic import BeforeValidator, ByteSize, TypeAdapter

_SIZE = TypeAdapter(ByteSize)


def _size(value: object) -> int:
    return int(_SIZE.validate_python(value))


Size = Annotated[int, BeforeValidator(_size)]
"""Bytes, given as a number or in words: "64MB", "1.5 GiB"."""


_UNITS = {1.0: "s sec second seconds", 60.0: "m min minute minutes", 3600.0: "h hour hours", 86400.0: "d day days"}
_SECONDS = {name: seconds for seconds, names in _UNITS.items() for name in names.split()}
_PART = r"(\d+(?:\.\d+)?)\s*([a-z]+)"


def parse_duration(text: str) -> float:
    """Read a time in words, such as "90 s", "1h 30min" or "2 days", as seconds; a bare number is seconds.

    Raises
    ------
    ValueError
        If it is no such time.
    """
    words = text.strip().lower()
    if re.fullmatch(r"\d+(\.\d+)?", words):
        return float(words)
    parts = re.findall(_PART, words)
    if not re.fullmatch(rf"({_PART}\s*)+", words) or any(unit not in _SECONDS for _, unit in parts):
        raise ValueError(f'{text!r} is no time: give one such as "90 s", "1h 30min" or "2 days"')
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def _duration(value: object) -> object:
    return parse_duration(value) if isinstance(value, str) else value


Duration = Annotated[float, BeforeValidator(_duration)]
"""Seconds, given as a number or in words: "90 s", "2 days"."""
