"""Uploads as S3 multipart uploads: a chunk is a part, and what the bucket shows at the end is a plain object.

The parts that have come are asked for at the end: S3 knows them best. A key has the upload's own name in it, so that
no upload replaces another one's object, which S3 would do without a word. obstore, which keeps artefacts elsewhere in
this package, has no multipart uploads that outlive a process; hence boto3, which takes address and credentials from the
same environment (``AWS_ENDPOINT`` or ``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, …).
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from delivery.upload.stores import BLOCK, Gone, Pieces, Slot
from ministream.base.errors import UserError

MOST_PARTS = 10_000
"""Parts that S3 lets an upload have."""

CONNECTIONS = 16


class S3Chunks:
    """Uploads in a bucket, below a prefix; `url` is ``s3://bucket/prefix``."""

    least, most, readable, in_place = 5 << 20, 5 << 30, False, False

    def __init__(self, url: str) -> None:
        self._url = url
        self._bucket, _, prefix = url.removeprefix("s3://").partition("/")
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        if not self._bucket:
            raise UserError(f"store {url}: give s3://bucket/prefix")
        endpoint = os.environ.get("AWS_ENDPOINT") or None
        config = Config(max_pool_connections=CONNECTIONS, retries={"mode": "standard"})
        with self._told():
            self._client: Any = boto3.client("s3", endpoint_url=endpoint, config=config)

    def begin(self, slot: Slot, *, exact: bool) -> str:
        """Begin a multipart upload; its own name is the handle."""
        if exact and slot.size > MOST_PARTS * slot.chunk_size:
            least = -(-slot.size // MOST_PARTS)
            raise UserError(f"S3 takes no more than {MOST_PARTS} chunks: {slot.size} bytes need chunks of {least}")
        with self._told():
            return str(self._client.create_multipart_upload(**self._key(slot))["UploadId"])

    def put(self, slot: Slot, number: int, pieces: Pieces, at: int = 0) -> None:  # noqa: ARG002 - always whole
        """Upload a part."""
        with self._told():
            self._client.upload_part(**self._key(slot), UploadId=slot.handle, PartNumber=number + 1, Body=_Body(pieces))

    def read(self, slot: Slot, start: int, stop: int) -> Iterator[bytes]:
        """Yield bytes of a finished object."""
        if start == stop:
            return
        with self._told():
            answer = self._client.get_object(**self._key(slot), Range=f"bytes={start}-{stop - 1}")
            yield from answer["Body"].iter_chunks(BLOCK)

    def finish(self, slot: Slot) -> None:
        """Complete the multipart upload; an empty object has no parts, and is put."""
        key = self._key(slot)
        with self._told():
            if not slot.size:
                self._client.put_object(**key, Body=b"")
                self.drop(slot)
                return
            try:
                parts = self._parts(slot)
                self._client.complete_multipart_upload(**key, UploadId=slot.handle, MultipartUpload={"Parts": parts})
            except ClientError as error:
                if not (_is_gone(error) and self._length(slot) == slot.size):  # else completed before a kill
                    raise

    def drop(self, slot: Slot) -> None:
        """Abort the multipart upload."""
        try:
            with self._told():
                self._client.abort_multipart_upload(**self._key(slot), UploadId=slot.handle)
        except Gone:
            return

    def obstacle(self, place: str) -> str:  # noqa: ARG002 - keys are never taken
        """Return nothing: keys have the uploads' own names in them."""
        return ""

    def _key(self, slot: Slot) -> dict[str, str]:
        owner, _, name = slot.name.partition("/")
        return {"Bucket": self._bucket, "Key": f"{self._prefix}{owner}/{slot.id}/{name}"}

    def _parts(self, slot: Slot) -> list[dict[str, Any]]:
        pages = self._client.get_paginator("list_parts").paginate(**self._key(slot), UploadId=slot.handle)
        return [
            {"PartNumber": part["PartNumber"], "ETag": part["ETag"]} for page in pages for part in page.get("Parts", ())
        ]

    def _length(self, slot: Slot) -> int | None:
        try:
            return int(self._client.head_object(**self._key(slot))["ContentLength"])
        except ClientError:
            return None

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            raise (Gone if _is_gone(error) else UserError)(f"store {self._url}: {error}") from error
        except (BotoCoreError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"store {self._url}: {error}") from error


class _Body:
    """Pieces as the file that boto3 reads from its beginning for each digest, and to send it."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces, self._length = pieces, sum(map(len, pieces))
        self.seek(0)

    def __len__(self) -> int:
        return self._length

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int) -> None:
        if offset:
            raise io.UnsupportedOperation("it can be read from its beginning alone")
        self._rest, self._piece, self._at = iter(self._pieces), memoryview(b""), 0

    def read(self, size: int) -> bytes:
        self._piece = self._piece or memoryview(next(self._rest, b""))
        some, self._piece = bytes(self._piece[:size]), self._piece[size:]
        self._at += len(some)
        return some


def _is_gone(error: ClientError) -> bool:
    return error.response["Error"]["Code"] in ("NoSuchUpload", "NoSuchKey", "404")
