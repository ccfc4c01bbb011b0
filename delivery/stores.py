"""Where prepared artefacts lie: a local folder by default, S3 in production; both through obstore.

A key is a POSIX path. What is put under it is there whole or not at all; nothing is ever held in memory whole.
"""

from collections.abc import Callable, Iterable, Iterator


class Store:
    """A folder or bucket.

    Parameters
    ----------
    url
        ``file:///folder`` or a plain path; ``s3://bucket/prefix``, which reads obstore's environment
        (``AWS_ENDPOINT``, ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_REGION``, ``AWS_ALLOW_HTTP``).

    Raises
    ------
    UserError
        If the URL names no store.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        raise NotImplementedError

    def put_stream(self, key: str, blocks: Iterable[bytes]) -> int:
        """Store what `blocks` yields and return its length in bytes; if they raise, nothing is stored."""
        raise NotImplementedError

    def open(self, key: str, etag: str) -> "Stored":
        """Return the artefact under `key` as content that a `RangeResponse` can send.

        Raises
        ------
        FileNotFoundError
            If there is none.
        """
        raise NotImplementedError

    def size(self, key: str) -> int | None:
        """Return the length of what is under `key`, None if nothing is."""
        raise NotImplementedError

    def delete(self, key: str) -> None:
        """Delete what is under `key`, if anything is."""
        raise NotImplementedError

    def keys(self, prefix: str = "") -> list[str]:
        """Return all keys in a folder of keys."""
        raise NotImplementedError


class Stored:
    """Content of a store, of known length and strong ETag (quoted)."""

    def __init__(self, get_range: Callable[[int, int], bytes], length: int, etag: str) -> None:
        self.length, self.etag = length, etag
        self._get_range = get_range

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes from `start` up to, without, `stop`."""
        raise NotImplementedError
