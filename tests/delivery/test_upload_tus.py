"""The tus door: real clients (tuspy, tus-js-client), and what the protocol says of what goes wrong."""

import base64
import hashlib
import io
import json
import os
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import httpx
import pytest
from tusclient.client import TusClient
from tusclient.exceptions import TusUploadFailed

from delivery.upload.tus import CHUNK
from tests.delivery.intake_service import Intake, intake
from tests.delivery.sync_programs import until

TUS = {"Tus-Resumable": "1.0.0"}
BYTES = {**TUS, "Content-Type": "application/offset+octet-stream"}


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with intake(tmp_path_factory.mktemp("tus"), "--stall", "30 s", "--log-level", "debug") as running:
        yield running


def name() -> str:
    return f"scan_{os.urandom(4).hex()}.h5"


def metadata(file: str) -> str:
    return f"filename {base64.b64encode(file.encode()).decode()},empty"


def create(service: Intake, size: int, file: str = "", **headers: str) -> str:
    given = {**TUS, "Upload-Length": str(size), "Upload-Metadata": metadata(file or name()), **headers}
    answer = service.operator.post("/tus/", headers={key: value for key, value in given.items() if value})
    assert answer.status_code == 201, answer.text
    assert answer.headers["tus-resumable"] == "1.0.0"
    return answer.headers["location"]


def patch(service: Intake, url: str, offset: int, content: bytes, **headers: str) -> httpx.Response:
    given = {**BYTES, "Upload-Offset": str(offset), **{key.replace("_", "-"): value for key, value in headers.items()}}
    return service.operator.patch(url, content=content, headers=given)


def offset(service: Intake, url: str) -> int:
    answer = service.operator.head(url, headers=TUS).raise_for_status()
    assert answer.headers["cache-control"] == "no-store"
    return int(answer.headers["upload-offset"])


def stored(service: Intake, file: str) -> bytes:
    (found,) = [content for path, content in service.files().items() if path.endswith(file)]
    return found


# Clients of others


@pytest.mark.parametrize("checksum", [False, True])
def test_tuspy_uploads_and_goes_on(service, tmp_path, checksum):
    content, file = os.urandom(2 * CHUNK + 12_345), name()
    (tmp_path / file).write_bytes(content)
    client = TusClient(f"{service.url}/tus/", headers={"Authorization": f"Bearer {service.token}"})
    options = {"chunk_size": 3_000_000, "upload_checksum": checksum}
    with (tmp_path / file).open("rb") as stream:
        uploader = client.uploader(file_stream=stream, metadata={"filename": file}, **options)
        uploader.upload_chunk()
        again = client.uploader(file_stream=stream, url=uploader.url, **options)  # another process would do so
        assert again.offset == 3_000_000
        again.upload()
    assert stored(service, file) == content


def test_tuspy_is_told_of_a_damaged_chunk(service, monkeypatch):
    client = TusClient(f"{service.url}/tus/", headers={"Authorization": f"Bearer {service.token}"})
    uploader = client.uploader(file_stream=io.BytesIO(bytes(1000)), upload_checksum=True)
    monkeypatch.setattr(uploader, "_BaseUploader__checksum_algorithm", lambda _: hashlib.sha1(b"another"))
    with pytest.raises(TusUploadFailed):
        uploader.upload()
    assert offset(service, uploader.url.removeprefix(service.url)) == 0


SCRIPT = """
const tus = require("tus-js-client"), fs = require("fs")
const [url, token, file, parallel] = process.argv.slice(2)
new tus.Upload(fs.createReadStream(file), {
  endpoint: url, headers: {Authorization: "Bearer " + token}, chunkSize: 1500000,
  parallelUploads: Number(parallel), metadata: {filename: require("path").basename(file)}, retryDelays: [100, 100],
  onError(error) { console.error(error); process.exit(1) }, onSuccess() { console.log("sent") },
}).start()
"""


@pytest.fixture(scope="module")
def tus_js_client(tmp_path_factory):
    """A folder with the client that npm's registry has, or npm's cache, and the script that uploads with it."""
    folder, limit = tmp_path_factory.mktemp("npm"), 100
    quietly = ["--prefer-offline", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    command = ["npm", "install", *quietly, "--fetch-timeout=20000", "--fetch-retries=2", "tus-js-client@4"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        pytest.fail(f"npm has not got tus-js-client from its registry within {limit} s")
    if done.returncode:
        pytest.fail(f"npm could not get tus-js-client from its registry: {done.stderr}")
    (folder / "send.js").write_text(SCRIPT)
    return folder


@pytest.mark.needs("node", "npm")
@pytest.mark.parametrize("parallel", [1, 3])
def test_tus_js_client_uploads_in_one_piece_and_in_parts(service, tus_js_client, parallel):
    content, file = os.urandom(2 * CHUNK + 12_345), name()
    (tus_js_client / file).write_bytes(content)
    command = ["node", "send.js", f"{service.url}/tus/", service.token, file, str(parallel)]
    done = subprocess.run(command, cwd=tus_js_client, capture_output=True, timeout=60, check=False)
    assert done.stdout == b"sent\n", done.stderr
    assert stored(service, file) == content


# The protocol


def test_options_tell_what_is_spoken(service):
    answer = httpx.options(f"{service.url}/tus/")
    assert answer.status_code == 204
    assert answer.headers["tus-version"] == "1.0.0"
    assert answer.headers["tus-extension"] == "creation,checksum,expiration,termination,concatenation"
    assert answer.headers["tus-checksum-algorithm"].split(",")[:2] == ["sha1", "sha256"]


def test_pieces_of_any_length_come_in_order(service):
    content, file = os.urandom(2 * CHUNK + 1000), name()
    url, at = create(service, len(content), file), 0
    for length in (1, 999, CHUNK - 1000, CHUNK + 7, 0, 992, 1):
        answer = patch(service, url, at, content[at : at + length])
        assert (answer.status_code, answer.headers["upload-offset"]) == (204, str(at + length)), answer.text
        at += length
        assert offset(service, url) == at
    assert stored(service, file) == content
    assert not list((service.folder / "spool").iterdir())


def test_an_empty_file_is_there_at_once(service):
    file = name()
    url = create(service, 0, file)
    assert offset(service, url) == 0
    assert stored(service, file) == b""


def test_what_does_not_fit_the_protocol_is_refused(service):
    url = create(service, 10)
    assert service.operator.head(url).status_code == 412
    other = service.operator.post("/tus/", headers={"Tus-Resumable": "0.2.1"})
    assert (other.status_code, other.headers["tus-version"]) == (412, "1.0.0")
    assert patch(service, url, 1, b"x").status_code == 409
    assert patch(service, url, 0, b"x", Content_Type="text/plain").status_code == 415
    assert patch(service, url, 0, b"x" * 11).status_code == 413
    assert patch(service, "/tus/unknown", 0, b"x").status_code == 404
    for headers in ({"Upload-Length": ""}, {"Upload-Length": "-1"}, {"Upload-Metadata": "a *"}):
        given = {**TUS, "Upload-Length": "1", **headers}
        assert service.operator.post("/tus/", headers=given).status_code == 400
    for file in ("../up", "x/" * 512 + "y"):
        given = {**TUS, "Upload-Length": "1", "Upload-Metadata": metadata(file)}
        refused = service.operator.post("/tus/", headers=given)
        assert (refused.status_code, refused.headers["tus-resumable"]) == (400, "1.0.0")
    assert httpx.post(f"{service.url}/tus/", headers={**TUS, "Upload-Length": "1"}).status_code == 401
    own = service.prepare(name(), 10)
    assert service.operator.head(f"/tus/{own}", headers=TUS).status_code == 404


@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
def test_a_wrong_checksum_takes_back_all_that_came_with_it(service, algorithm):
    content, file = os.urandom(2 * CHUNK + 500), name()
    url = create(service, len(content), file)
    assert patch(service, url, 0, content[:700]).status_code == 204

    def checksum(given: bytes) -> str:
        return f"{algorithm} {base64.b64encode(hashlib.new(algorithm, given).digest()).decode()}"

    rest = content[700:]
    for wrong in (rest[:-1] + bytes([rest[-1] ^ 1]), rest[:CHUNK]):
        assert patch(service, url, 700, wrong, Upload_Checksum=checksum(rest)).status_code == 460
        assert offset(service, url) == 700
    assert patch(service, url, 700, rest, Upload_Checksum="md17 AAAA").status_code == 400
    assert patch(service, url, 700, rest, Upload_Checksum=f"{algorithm} *").status_code == 400
    assert patch(service, url, 700, rest, Upload_Checksum=checksum(rest)).status_code == 204
    assert stored(service, file) == content


def open_line(service: Intake, url: str, at: int, content: bytes, length: int) -> socket.socket:
    where = httpx.URL(service.url)
    line = socket.create_connection((where.host, where.port), timeout=30)
    headers = {**BYTES, "Host": "x", "Authorization": f"Bearer {service.token}", "Upload-Offset": str(at)}
    lines = [f"PATCH {url} HTTP/1.1", *(f"{key}: {value}" for key, value in headers.items())]
    line.sendall("\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode() + content)
    return line


def test_what_came_before_a_cut_is_kept(service):
    content, file = os.urandom(CHUNK + 5000), name()
    url = create(service, len(content), file)
    with open_line(service, url, 0, content[: CHUNK + 100], len(content)):
        pass
    until(lambda: offset(service, url) == CHUNK + 100, "what came is kept")
    assert patch(service, url, CHUNK + 100, content[CHUNK + 100 :]).status_code == 204
    assert stored(service, file) == content


def test_a_line_that_is_dead_does_not_hold_up_the_next_one(service):
    content, file = os.urandom(5000), name()
    url = create(service, len(content), file)
    with open_line(service, url, 0, content[:100], len(content)) as dead:
        until(lambda: "POST" in service.process.said(), "it is there")
        while patch(service, url, at := offset(service, url), content[at:]).status_code == 409:
            pass
        assert b"409" in dead.recv(1000)
    assert stored(service, file) == content


def trickled(line: socket.socket) -> bytes | None:
    """Send one more byte, and return the answer if there is one."""
    line.sendall(b"x")
    try:
        return line.recv(1000)
    except TimeoutError:
        return None


@pytest.mark.timeout(120)
def test_one_who_trickles_holds_up_nobody_for_long(tmp_path):
    with intake(tmp_path, "--memory", "1MiB", "--stall", "1 s") as service:
        slow, other = create(service, 1 << 20), create(service, 10)
        with open_line(service, slow, 0, b"x", 1 << 20) as line:
            line.settimeout(0.1)
            with ThreadPoolExecutor(1) as pool:
                waiting = pool.submit(patch, service, other, 0, bytes(10))
                while (answer := trickled(line)) is None:
                    pass
                assert answer.startswith(b"HTTP/1.1 408")
                assert waiting.result().status_code in (204, 503)


def test_a_kill_costs_no_more_than_a_chunk(tmp_path):
    content = os.urandom(3 * CHUNK)
    with intake(tmp_path) as service:
        url = create(service, len(content), "a.h5")
        with open_line(service, url, 0, content[: 2 * CHUNK + 100], len(content)):
            until(lambda: offset(service, url) >= CHUNK, "chunks are counted")
            service.process.kill()
        service.start()
        at = offset(service, url)
        assert at in (CHUNK, 2 * CHUNK)
        assert patch(service, url, at, content[at:]).status_code == 204
        assert stored(service, "a.h5") == content


def test_parts_are_put_together(service):
    content, file = os.urandom(2 * CHUNK + 777), name()
    cuts = [0, 5, CHUNK + 9, len(content)]
    urls = []
    for start, stop in pairwise(cuts):
        urls.append(create(service, stop - start, "", **{"Upload-Concat": "partial"}))
        last = patch(service, urls[-1], 0, content[start : stop - 1])
        assert last.status_code == 204
        final = {**TUS, "Upload-Concat": f"final;{' '.join(urls)}", "Upload-Metadata": metadata(file)}
        assert service.operator.post("/tus/", headers=final).status_code == 400  # a part is not complete
        assert patch(service, urls[-1], stop - start - 1, content[stop - 1 : stop]).status_code == 204
    assert service.operator.head(urls[0], headers=TUS).headers["upload-concat"] == "partial"
    answer = service.operator.post("/tus/", headers=final)
    assert answer.status_code == 201, answer.text
    assert stored(service, file) == content
    assert service.operator.head(answer.headers["location"], headers=TUS).headers["upload-length"] == str(len(content))
    assert service.operator.head(urls[0], headers=TUS).status_code == 410
    for wrong in ("final;", "final;/tus/unknown", "sideways", f"final;{answer.headers['location']}"):
        headers = {**TUS, "Upload-Length": "1", "Upload-Concat": wrong}
        assert service.operator.post("/tus/", headers=headers).status_code in (400, 404)


def test_the_same_parts_are_put_together_once_however_often_they_ask(service):
    content, file = os.urandom(2 * CHUNK), name()
    urls = [create(service, CHUNK, "", **{"Upload-Concat": "partial"}) for _ in range(2)]
    for url, part in zip(urls, (content[:CHUNK], content[CHUNK:]), strict=True):
        assert patch(service, url, 0, part).status_code == 204
    final = {**TUS, "Upload-Concat": f"final;{' '.join(urls)}", "Upload-Metadata": metadata(file)}
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: service.operator.post("/tus/", headers=final), range(4)))
    answers.append(service.operator.post("/tus/", headers=final))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.headers["location"] for answer in answers}) == 1
    assert stored(service, file) == content


def test_what_is_given_up_is_gone(service):
    url = create(service, 10)
    assert patch(service, url, 0, b"some").status_code == 204
    assert "upload-expires" in service.operator.head(url, headers=TUS).headers
    assert service.operator.delete(url, headers=TUS).status_code == 204
    assert service.operator.head(url, headers=TUS).status_code == 410
    assert not list((service.folder / "spool").glob(f"{url.rpartition('/')[2]}*"))


def test_those_who_can_only_post_say_what_they_mean(service):
    file = name()
    url = create(service, 5, file)
    override = {**BYTES, "X-HTTP-Method-Override": "PATCH", "Upload-Offset": "0"}
    assert service.operator.post(url, content=b"hello", headers=override).status_code == 204
    assert stored(service, file) == b"hello"
    assert httpx.options(f"{service.url}/tus/", headers={"Origin": "https://lab"}).headers.get(ALLOWED) is None


ALLOWED = "access-control-allow-origin"


def test_pages_of_an_allowed_origin_send_from_browsers(tmp_path):
    with intake(tmp_path, "--allow-origin", "https://lab.example, https://other.example") as service:
        asked = {
            "Access-Control-Request-Method": "PATCH",
            "Access-Control-Request-Headers": "tus-resumable,upload-offset",
        }
        for origin, allowed in (("https://lab.example", True), ("https://evil.example", False)):
            answer = httpx.options(f"{service.url}/tus/x", headers={"Origin": origin, **asked})
            assert (answer.headers.get(ALLOWED) == origin, answer.is_success) == (allowed, allowed)
        headers = {**TUS, "Origin": "https://lab.example", "Upload-Length": "1"}
        answer = service.operator.post("/tus/", headers=headers)
        assert answer.headers[ALLOWED] == "https://lab.example"
        assert {"Location", "Upload-Offset"} <= set(answer.headers["access-control-expose-headers"].split(", "))


def test_many_uploads_at_once(service):
    contents = {name(): os.urandom(CHUNK + number) for number in range(8)}

    def send(file: str) -> None:
        url = create(service, len(contents[file]), file)
        for at in range(0, len(contents[file]), 1_000_000):
            assert patch(service, url, at, contents[file][at : at + 1_000_000]).status_code == 204

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(send, contents))
    assert {file: stored(service, file) for file in contents} == contents


def test_uploads_by_tus_are_seen_at_the_other_door(service):
    url = create(service, 10, "seen.h5")
    status = service.status(url.rpartition("/")[2])
    assert (status["name"], status["state"], status["size"]) == ("seen.h5", "open", 10)
    assert json.dumps(status)
