"""Sizes and times in words, for settings: "1GB", "2 days".

Times have a parser of their own, a dozen lines: pydantic's reads ISO 8601 and clock times but no words, and the
packages that read words also guess ("1:30" is minutes or hours, "m" a month), where a setting had better be refused.
"""

import math
import re
from typing import Annotated

from pydantic import BeforeValidator, ByteSize, TypeAdapter

from ministream.base.errors import UserError

_SIZE = TypeAdapter(ByteSize)


def _size(value: object) -> int:
    return int(_SIZE.validate_python(value))


Size = Annotated[int, BeforeValidator(_size)]
"""Bytes, given as a number or in words: "64MB", "1.5 GiB"."""

_UNITS = {
    1e-3: "ms millisecond milliseconds",
    1.0: "s sec secs second seconds",
    60.0: "m min mins minute minutes",
    3600.0: "h hr hrs hour hours",
    86400.0: "d day days",
    604800.0: "w week weeks",
}
_SECONDS = {name: seconds for seconds, names in _UNITS.items() for name in names.split()}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)[\s,]*", re.ASCII)


def parse_duration(value: object) -> float:
    """Return the seconds that `value` says: a number of them, or words such as "180 s", "2 days" or "1h30m".

    Raises
    ------
    UserError
        If it says no time, or one that is negative or endless.
    """
    text = str(value).strip().lower()
    seconds = _plain_number(text)
    if seconds is None:
        parts = _PART.findall(text)
        known = bool(parts) and not _PART.sub("", text) and all(unit in _SECONDS for _, unit in parts)
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts) if known else math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise UserError(f"{value!r} is no duration: give seconds, or words such as '180 s', '2 days' or '1h30m'")
    return seconds


def _plain_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


Duration = Annotated[float, BeforeValidator(parse_duration)]
"""Seconds, given as a number or in words: "180 s", "2 days", "1h30m"."""
