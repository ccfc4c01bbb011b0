"""The broker's side of the line: fetches a batch, goes on where it was cut, and says what has arrived.

An old server's answer has no ETag: what was cut there begins anew.
"""

import re
import shutil
import socket
import time
from email.message import Message
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from delivery.asking import bearer_of, detail_of
from delivery.progress import progress_bar
from delivery.sync.inbox import Inbox, Record
from delivery.sync.protocol import ACKNOWLEDGES, BATCH, Acknowledgement
from ministream.base.errors import UserError
from ministream.base.files import explained
from ministream.base.log import get_logger

ANSWER = 600.0
"""Seconds that a server may take to digest what is new before it answers."""

_TIMEOUT = httpx.Timeout(ANSWER, connect=20.0)
_ALIVE = [  # a line that is silently dead is found in under a minute
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 20),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
]


class Busy(UserError):  # noqa: N818
    """The server can't answer now; `seconds` is when to ask again, in its own words."""

    def __init__(self, text: str, seconds: float) -> None:
        super().__init__(text)
        self.seconds = seconds


class Server:
    """The server that a broker asks.

    Parameters
    ----------
    api
        URL, which ends in /stream.
    project, ext
        What is mirrored.
    wait
        Seconds that it may hold a request while nothing is new.
    token_file
        File with the broker's token, read with each request, so that it can be renewed.

    Attributes
    ----------
    held
        Whether it held the last request that it had nothing new for.
    """

    def __init__(self, api: str, project: str, ext: str, wait: float, token_file: Path | None) -> None:
        self._url, self._ext, self._wait, self._token_file = f"{api}/{project}/{ext}", ext, int(wait), token_file
        self.held = False
        transport = httpx.HTTPTransport(socket_options=_ALIVE)
        self._client = httpx.Client(transport=transport, timeout=_TIMEOUT)
        if token_file and api.startswith("http:") and urlsplit(api).hostname not in ("localhost", "127.0.0.1", "::1"):
            get_logger().warning("the token travels in the clear; put TLS before the server", api=api)

    def close(self) -> None:
        """Close what connections there are."""
        self._client.close()

    def fetch(self, inbox: Inbox, record: Record | None) -> Record | None:
        """Fetch a batch whole into the inbox and return what is known of it; None if nothing is new.

        Parameters
        ----------
        inbox
            Where it is written.
        record
            What is under way already, if anything is.

        Raises
        ------
        UserError
            If it can't be fetched now. What came stays, and is gone on with.
        """
        while True:
            held = inbox.held()
            if record and record.length and held == record.length:
                return record
            try:
                record = self._fetch(inbox, record)
            except httpx.TransportError as error:
                record = inbox.record()
                if inbox.held() == held or not (record and record.etag):
                    raise UserError(f"{self._url}: {error or type(error).__name__}; is the server up?") from error
                get_logger().info("cut, going on", bytes=inbox.held())
            else:
                if record is None or not record.length or inbox.held() == record.length:
                    return record

    def acknowledge(self, record: Record) -> None:
        """Say that a batch has been received; one that the server offers no more is no fault.

        Raises
        ------
        UserError
            If the server can't be told, or says that it sent something else.
        """
        url, has = f"{self._url}/batches/{record.batch}", Acknowledgement(blake3=record.digests)
        try:
            answer = self._client.put(url, headers=self._right(), json=has.model_dump())
        except httpx.TransportError as error:
            raise UserError(f"{self._url}: {error or type(error).__name__}; is the server up?") from error
        if answer.status_code == 404:
            get_logger().warning(
                "the server offers this batch no more", zip=record.name, reason=detail_of(answer)[:300]
            )
        elif not answer.is_success:
            raise _refusal(self._url, answer)

    def _fetch(self, inbox: Inbox, record: Record | None) -> Record | None:
        headers = {**self._right(), ACKNOWLEDGES: "yes", "Accept-Encoding": "identity"}
        held = inbox.held()
        if record and record.etag and held:
            headers |= {"Range": f"bytes={held}-", "If-Range": record.etag}
        elif self._wait:
            headers["Prefer"] = f"wait={self._wait}"
        asked = time.monotonic()
        with self._client.stream("GET", self._url, headers=headers) as answer:
            if answer.status_code not in (200, 206):
                answer.read()
                if answer.status_code == 404:
                    self.held = time.monotonic() - asked >= min(self._wait, 1) > 0
                    get_logger().debug("nothing to fetch", reason=detail_of(answer)[:300])
                    return None
                raise _refusal(self._url, answer)
            if answer.status_code == 200 or record is None:
                record = self._begin(inbox, answer)
            elif not answer.headers.get("content-range", "").startswith(f"bytes {held}-"):
                raise UserError(f"{self._url}: the server sent another range than was asked for")
            self._write(inbox, record, answer)
        return record

    def _begin(self, inbox: Inbox, answer: httpx.Response) -> Record:
        tag = answer.headers.get("etag", "")
        etag = tag if tag.startswith('"') else ""
        length = int(answer.headers.get("content-length", "0"))
        return inbox.begin(answer.headers.get(BATCH, ""), etag, self._name(answer), length)

    def _write(self, inbox: Inbox, record: Record, answer: httpx.Response) -> None:
        missing = record.length - inbox.held()
        free = shutil.disk_usage(inbox.folder).free
        if missing > free:
            raise UserError(f"{inbox.folder}: the batch needs {missing} more bytes, {free} are free; make room")
        with explained(inbox.part), inbox.part.open("ab", buffering=0) as file, progress_bar() as bar:
            task = bar.add_task(record.name, total=record.length or None, completed=inbox.held())
            for block in answer.iter_raw():
                file.write(block)
                bar.advance(task, len(block))

    def _name(self, answer: httpx.Response) -> str:
        words = Message()
        words["content-disposition"] = answer.headers.get("content-disposition", "")
        return words.get_filename() or f"{self._ext}_{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.zip"

    def _right(self) -> dict[str, str]:
        return {} if self._token_file is None else {"Authorization": bearer_of(self._token_file)}


def _refusal(url: str, answer: httpx.Response) -> UserError:
    text = f"{url}: {answer.status_code} {detail_of(answer)[:300]}"
    after = answer.headers.get("retry-after", "")
    if answer.status_code == 503 or re.fullmatch(r"\d{1,4}", after, re.ASCII):
        return Busy(text, float(after) if after.isdecimal() else 0.0)
    return UserError(text)
