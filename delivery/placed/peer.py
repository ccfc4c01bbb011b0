"""The other site, over HTTP: what it holds, and its bytes."""

from collections.abc import Generator, Iterator
from pathlib import Path

import httpx
from blake3 import blake3
from pydantic import BaseModel, ConfigDict, ValidationError

from delivery.asking import bearer_of, detail_of
from delivery.placed.disk import BLOCK, write_all
from delivery.placed.messages import File
from delivery.placed.register import State
from ministream.base.errors import UserError
from ministream.base.files import explained

_TIMEOUT = httpx.Timeout(60.0, connect=10.0)


class Copy(BaseModel):
    """What a site says of a file: the reference, its state there, and the state of its bytes if that was asked for.

    `bytes` is "good", "missing" or "damaged"; "unread" where nobody looked. Without `file` there are bytes, no record.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    file: File | None = None
    state: State | None = None
    bytes: str = "unread"


class Unreachable(UserError):  # noqa: N818
    """The other site can't be asked now."""


class Peer:
    """A site, for any number of threads.

    Parameters
    ----------
    url
        Where it listens.
    token_file
        File with a bearer token that it knows; read with each request, so that it can be renewed.
    """

    def __init__(self, url: str, token_file: Path) -> None:
        self.url = url.rstrip("/")
        self._client = httpx.Client(base_url=self.url, auth=_Bearer(token_file), timeout=_TIMEOUT)

    def close(self) -> None:
        """Close what connections there are."""
        self._client.close()

    def copy(self, id_: str, *, read: bool = False) -> Copy | None:
        """Return what it says of a file, with `read` after reading all of it; None if it knows none of that id."""
        answer = self._ask("GET", f"/copies/{id_}{'?read=yes' if read else ''}", known=404)
        return None if answer.status_code == 404 else _parsed(answer.text, self.url)

    def copies(self, *, read: bool) -> Iterator[Copy]:
        """Yield what it says of all its files in order of their ids; with `read`, it reads and digests each."""
        options = {"read": "yes"} if read else {}
        try:
            with self._client.stream("GET", "/copies", params=options) as answer:
                if answer.status_code != 200:
                    answer.read()
                    raise _refused(self.url, answer)
                for line in answer.iter_lines():
                    yield _parsed(line, self.url)
        except httpx.HTTPError as error:
            raise _unreachable(self.url, error) from error

    def send(self, body: bytes) -> None:
        """Hand it a message, without a broker."""
        self._ask("POST", "/messages", content=body)

    def mend(self, file: File, action: str) -> None:
        """Have it "offer" a file again, or "fetch" it again."""
        self._ask("POST", f"/copies/{file.id}/{action}", content=file.model_dump_json().encode())

    def fetch(self, file: File, part: Path) -> str:
        """Write a file's bytes to `part`, from where it stops on, and return the BLAKE3 of all of them."""
        digest, held = blake3(), 0
        with explained(part), part.open("a+b", buffering=0) as written:
            written.seek(0)
            while block := written.read(BLOCK):
                digest.update(block)
                held += len(block)
            if held > file.size:
                written.truncate(0)
                raise UserError(f"{part.name} was longer than the file; it is fetched anew")
            if held < file.size:
                for block in self._bytes(file, held):
                    write_all(written, block)  # no more than `size`: HTTP keeps to the length that was announced
                    digest.update(block)
        return digest.hexdigest()

    def _bytes(self, file: File, start: int) -> Iterator[bytes]:
        headers = {"Range": f"bytes={start}-", "If-Match": f'"{file.blake3}"', "Accept-Encoding": "identity"}
        try:
            with self._client.stream("GET", f"/copies/{file.id}/bytes", headers=headers) as answer:
                if answer.status_code not in (200, 206) or _length(answer) != file.size - start:
                    raise _refused(self.url, answer)
                yield from answer.iter_raw(BLOCK)
        except httpx.HTTPError as error:
            raise _unreachable(self.url, error) from error

    def _ask(self, method: str, path: str, *, content: bytes = b"", known: int = 200) -> httpx.Response:
        try:
            headers = {"Content-Type": "application/json"}
            answer = self._client.request(method, path, content=content, headers=headers)
        except httpx.HTTPError as error:
            raise _unreachable(self.url, error) from error
        if not answer.is_success and answer.status_code != known:
            raise _refused(self.url, answer)
        return answer


class _Bearer(httpx.Auth):
    def __init__(self, file: Path) -> None:
        self._file = file

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["Authorization"] = bearer_of(self._file)
        yield request


def _parsed(text: str, url: str) -> Copy:
    try:
        return Copy.model_validate_json(text)
    except ValidationError as error:
        raise UserError(f"{url} says what this program does not understand; are both of one version?") from error


def _length(answer: httpx.Response) -> int:
    return int(answer.headers.get("content-length", "-1"))


def _unreachable(url: str, error: httpx.HTTPError) -> Unreachable:
    return Unreachable(f"{url}: {error or type(error).__name__}; is the other site up?")


def _refused(url: str, answer: httpx.Response) -> UserError:
    return UserError(f"{url}: {answer.status_code} {detail_of(answer)[:300]}")
