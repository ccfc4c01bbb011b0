"""Answers of known length and strong ETag, whole or in part (RFC 9110): Range, If-Range, If-None-Match, HEAD."""

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send


class Content(Protocol):
    """What can be sent: `etag` is a strong entity tag with its quotes, `length` is in bytes."""

    @property
    def length(self) -> int: ...  # noqa: D102

    @property
    def etag(self) -> str: ...  # noqa: D102

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes from `start` up to, without, `stop`; raise to break the connection off."""
        ...


class RangeResponse(Response):
    """Send `content`, or the range of it that was asked for; several ranges at once are answered with the whole.

    Parameters
    ----------
    content
        What to send.
    filename
        Name that the download is to have.
    media_type
        Its MIME type.
    headers
        More headers.
    on_sent
        Called with (start, stop) once the last byte of the answer was handed to the connection; not for HEAD.
    """

    def __init__(
        self,
        content: Content,
        *,
        filename: str = "",
        media_type: str = "application/zip",
        headers: Mapping[str, str] | None = None,
        on_sent: Callable[[int, int], None] | None = None,
    ) -> None:
        super().__init__(media_type=media_type, headers=headers)
        self._content, self._filename, self._on_sent = content, filename, on_sent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request in `scope`."""
        raise NotImplementedError
