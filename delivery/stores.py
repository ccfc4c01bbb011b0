"""Where prepared artefacts lie: a local folder by default, S3 in production; both through obstore.

A key is a relative POSIX path. What is put under it is there whole or not at all; nothing is held in memory whole.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, S3Store

from ministream.base.errors import UserError

PART = 8 << 20
"""Bytes put to S3 or got from it at a time; it takes no parts below 5 MiB but the last, and no more than 10 000."""

BLOCK = 1 << 20
"""The same for a folder, where a request costs little: what each of many downloads holds in memory."""

WRITERS = 2
"""Parts that are under way at once: with their length, what a put holds in memory."""

_HALF = re.compile(r".+#\d+")
"""Names under which obstore writes to a folder, until it renames."""


class StoreFailed(UserError):  # noqa: N818 - says what happened
    """A store can't be reached, or takes no more; another try may do."""


class Stored:
    """Content of a store that a `RangeResponse` can send."""

    def __init__(self, get_range: Callable[[int, int], bytes], length: int, etag: str, block: int) -> None:
        self.length, self.etag = length, etag
        self._get_range, self._block = get_range, block

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes from `start` up to, without, `stop`."""
        for at in range(start, stop, self._block):
            yield self._get_range(at, min(at + self._block, stop))


class Store:
    """A folder or a bucket.

    Parameters
    ----------
    url
        A folder's path, which is made if need be, or its ``file:///`` URL; ``s3://bucket/prefix``, for which obstore
        reads the environment (``AWS_ENDPOINT``, ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_REGION``,
        ``AWS_ALLOW_HTTP``).

    Raises
    ------
    UserError
        If the URL names no store. Methods raise StoreFailed where the store can't be reached, or is full.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self._store = _open(url)
        except (BaseError, OSError, ValueError) as error:
            raise UserError(f"store {url}: {error}; give a folder or s3://bucket/prefix") from error
        self._block = BLOCK if isinstance(self._store, LocalStore) else PART

    def put_stream(self, key: str, blocks: Iterable[bytes]) -> int:
        """Store what `blocks` yields and return its length in bytes; if they raise, so does this."""
        counted = _Counted(blocks)
        try:
            obstore.put(self._store, key, counted, chunk_size=self._block, max_concurrency=WRITERS)
        except Exception as error:
            raise counted.error or self._told(error, key) from error
        return counted.length

    def open(self, key: str, etag: str) -> Stored:
        """Return what is under `key`, with the strong entity tag (quoted) that it is to be sent with.

        Raises
        ------
        FileNotFoundError
            If there is nothing.
        """
        length = self.size(key)
        if length is None:
            raise FileNotFoundError(f"nothing is under {key} in {self.url}")
        return Stored(lambda start, stop: self._get_range(key, start, stop), length, etag, self._block)

    def size(self, key: str) -> int | None:
        """Return the length of what is under `key`, None if nothing is."""
        try:
            return obstore.head(self._store, key)["size"]
        except FileNotFoundError:
            return None
        except BaseError as error:
            raise self._told(error, key) from error

    def delete(self, key: str) -> None:
        """Delete what is under `key`, if anything is."""
        try:
            obstore.delete(self._store, key)
        except FileNotFoundError:
            return
        except BaseError as error:
            raise self._told(error, key) from error

    def keys(self, prefix: str = "") -> list[str]:
        """Return all keys below a folder of keys, in order."""
        try:
            return sorted(item["path"] for batch in obstore.list(self._store, prefix or None) for item in batch)
        except BaseError as error:
            raise self._told(error, prefix) from error

    def sweep(self) -> None:
        """Delete what puts that were killed left half-way in a folder; S3 does so by its bucket's rules.

        Nothing may be put meanwhile.
        """
        if isinstance(self._store, LocalStore) and self._store.prefix:
            for half in Path(self._store.prefix).rglob("*#*"):
                if _HALF.fullmatch(half.name):
                    half.unlink(missing_ok=True)

    def _get_range(self, key: str, start: int, stop: int) -> bytes:
        try:
            return obstore.get_range(self._store, key, start=start, end=stop).to_bytes()
        except (BaseError, OSError) as error:
            raise self._told(error, key) from error

    def _told(self, error: Exception, key: str) -> StoreFailed:
        words = str(error).strip().splitlines()
        return StoreFailed(f"store {self.url}, {key}: {words[0] if words else type(error).__name__}")


class _Counted:
    """Blocks on their way into a store: how many bytes, and what they raised, which obstore would wrap."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = blocks
        self.length = 0
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[bytes]:
        try:
            for block in self._blocks:
                self.length += len(block)
                yield block
        except Exception as error:
            self.error = error
            raise


def _open(url: str) -> LocalStore | S3Store:
    if url.startswith("s3://"):
        return S3Store.from_url(url)
    folder = Path(url.removeprefix("file://"))
    if "://" in url and not url.startswith("file:///"):
        raise ValueError("no such kind of store is known")
    return LocalStore(folder.absolute(), mkdir=True)
