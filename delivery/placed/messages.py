"""What sites say to each other through a broker: references of at most 1 KB, never content.

Names and numbers here are the sender's word: whoever acts on a message asks the sender's site itself.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError, field_validator

from delivery.placed.rules import Place, Site
from delivery.settings import NAME
from ministream.base.errors import UserError

LONGEST = 1024
"""Bytes of the longest message."""

LONGEST_NAME = 255
"""Bytes of a file's name in UTF-8: what file systems take, and what leaves room in a message."""

Id = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class File(BaseModel):
    """A file by reference.

    Parameters
    ----------
    id
        Of name, project and content (`disk.identify`).
    name, size, blake3
        Its name, its length in bytes, the digest of its bytes.
    project
        That it was uploaded for; empty if for none.
    place
        Where the rule says that it belongs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Id
    name: str
    size: int = Field(ge=0, lt=1 << 63)
    blake3: Digest
    project: str = Field(default="", pattern=rf"^(|{NAME.pattern})$")
    place: Place

    @field_validator("name")
    @classmethod
    def _fit(cls, name: str) -> str:
        return check_name(name)


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    sender: Site


class Offer(_Message):
    """Fetch this file from me: it belongs to you."""

    kind: Literal["offer"] = "offer"
    file: File


class Have(_Message):
    """I hold the file with this id."""

    kind: Literal["have"] = "have"
    id: Id


class Hello(_Message):
    """I have just come, or come back: offer again what I have not answered. `rule` is mine; yours must be the same."""

    kind: Literal["hello"] = "hello"
    rule: str = Field(max_length=200)


class Probe(_Message):
    """I send this to myself, to see whether what is sent to me arrives."""

    kind: Literal["probe"] = "probe"
    id: Id


Message = Offer | Have | Hello | Probe

_ANY: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="kind")])


class Poison(UserError):  # noqa: N818
    """A message that no site of ours can have meant."""


def encode(message: Message) -> bytes:
    """Return a message as JSON."""
    return message.model_dump_json().encode()


def decode(body: bytes) -> Message:
    """Return what `encode` made into JSON.

    Raises
    ------
    Poison
        If it is no such message.
    """
    if len(body) > LONGEST:
        raise Poison(f"{len(body)} bytes are no message: the longest has {LONGEST}")
    try:
        return _ANY.validate_json(body, strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise Poison(f"{where or 'message'}: {first['msg']}") from error


def check_name(name: str) -> str:
    """Return a file's name if it is one.

    Raises
    ------
    UserError
        If it is empty, too long, leads into a folder, or has control characters.
    """
    try:
        length = len(name.encode())
    except UnicodeEncodeError as error:
        raise UserError("the file's name is not UTF-8 text") from error
    if not 0 < length <= LONGEST_NAME or name in (".", "..") or "/" in name or not name.isprintable():
        raise UserError(
            f"{name[:100]!a} is no name for a file: give 1 to {LONGEST_NAME} bytes of printable UTF-8 without a slash"
        )
    return name
