"""What is said beside the frames: log events that travel with the scan, and why it stops early.

One message is `MAGIC`, the CRC-32 (little-endian) of all that follows, and a JSON object in UTF-8 with exactly the
fields of a `Note` or of a `Farewell`. Everything in it is bounded, and the names are chosen so that what a peer says
can be logged as it is: it may speak for the programs on its side alone, and set no field that our logs give a meaning.
"""

import math
import zlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from aps_mini_apps.wire import WireError
from ministream.base.log import LogLevel

MAGIC = b"MSN1"
"""No frame begins like this: as the place of a root table it lies 800 MB away."""

MAX_BYTES = 64 * 1024
"""Bytes of the longest note."""

MAX_TEXT, MAX_FIELDS = 1000, 24
"""Characters of a text, and number of fields, that a note holds."""

_HEAD = len(MAGIC) + 4
_OWN = {"time", "level", "service", "event"}
_RESERVED = _OWN | {"via", "self", "exc_info", "exception", "stack", "stack_info", "positional_args"}
"""Names that a logger gives a meaning of its own."""


def _not_reserved(name: str) -> str:
    if name in _RESERVED:
        raise ValueError(f"a note must not set the field {name!r}")
    return name


_Time = Annotated[str, StringConstraints(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}(\.[0-9]{1,9})?Z$")]
_Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,39}$"), AfterValidator(_not_reserved)]
_Text = Annotated[str, StringConstraints(max_length=MAX_TEXT)]
_Int = Annotated[int, Field(ge=-(2**63), lt=2**63)]
_Float = Annotated[float, Field(allow_inf_nan=False)]
_Value = bool | _Int | _Float | _Text | None


class _Said(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Note(_Said):
    """One log event of a program on the producer's side.

    Attributes
    ----------
    time
        When it was logged, UTC, ISO 8601 with a `Z`.
    level, service, event
        As in the log.
    fields
        The event's other fields, by name.
    """

    time: _Time
    level: LogLevel
    service: Literal["daq", "dist"]
    event: _Text
    fields: Annotated[dict[_Name, _Value], Field(max_length=MAX_FIELDS)] = {}

    @classmethod
    def from_event(cls, event: Mapping[str, Any]) -> "Note":
        """Return the note of a log event; what a note cannot hold is shortened, written as text, or left out.

        Raises
        ------
        WireError
            If it has no service that may speak here, or no time.
        """
        fields = {name: _plain(value) for name, value in event.items() if name not in _RESERVED}
        own = {name: _plain(event.get(name)) for name in _OWN}
        try:
            return cls.model_validate(own | {"fields": dict(list(fields.items())[:MAX_FIELDS])})
        except ValidationError as error:
            raise WireError(_explain(error)) from error

    def as_event(self) -> dict[str, Any]:
        """Return the log event, as `from_event` takes it."""
        return {"time": self.time, "level": self.level, "service": self.service, "event": self.event, **self.fields}


class Farewell(_Said):
    """The last message of a sender that stops before the scan has ended, and why it does."""

    reason: _Text


_SAID: TypeAdapter[Note | Farewell] = TypeAdapter(Note | Farewell)


def farewell(reason: str) -> Farewell:
    """Return the `Farewell` with `reason`, shortened if need be."""
    return Farewell(reason=_shorten(reason))


def is_note(message: bytes | bytearray | memoryview) -> bool:
    """Return whether `message` claims to be a note."""
    return bytes(message[: len(MAGIC)]) == MAGIC


def encode(said: Note | Farewell) -> bytes:
    """Return the message that holds `said`.

    Raises
    ------
    WireError
        If it is longer than `MAX_BYTES`.
    """
    body = _SAID.dump_json(said)
    message = MAGIC + zlib.crc32(body).to_bytes(4, "little") + body
    if len(message) > MAX_BYTES:
        raise WireError(f"a note of {len(message)} bytes; at most {MAX_BYTES} may be sent")
    return message


def decode(message: bytes | bytearray | memoryview) -> Note | Farewell:
    """Return what `message` holds.

    Raises
    ------
    WireError
        If it is truncated, corrupt, too long, or holds what a note must not.
    """
    if len(message) > MAX_BYTES:
        raise WireError(f"a note of {len(message)} bytes; at most {MAX_BYTES} are taken")
    data = bytes(message)
    if not is_note(data) or len(data) < _HEAD:
        raise WireError("the message is no note")
    body = data[_HEAD:]
    if zlib.crc32(body) != int.from_bytes(data[len(MAGIC) : _HEAD], "little"):
        raise WireError("the checksum of a note does not hold: it was changed on its way")
    try:
        return _SAID.validate_json(body)
    except ValidationError as error:
        raise WireError(_explain(error)) from error


def _plain(value: object) -> object:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) < 2**63:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    return _shorten(str(value))


def _shorten(text: str) -> str:
    whole = text.encode(errors="replace").decode()  # no half of a surrogate pair
    return whole if len(whole) <= MAX_TEXT else whole[: MAX_TEXT - 1] + "…"


def _explain(error: ValidationError) -> str:
    """Name the first thing that is wrong, without repeating what was sent."""
    problem = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in problem["loc"])[:80]
    return f"a note that is none: {where}: {problem['msg']}"
