"""Uploads by the archive's own routes, at a real service: what is verified, what is refused, what happens twice."""

import base64
import hashlib
import hmac
import os
import random
import re
import resource
import socket
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from blake3 import blake3

from tests.delivery.intake_service import PASSWORD, cut, intake, made, tree
from tests.delivery.sync_programs import until

OLD_KEY = "shared by everybody"


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    options = ["--old-clients-key", OLD_KEY, "--roots", root, "--unknown-size", "10MB"]
    with intake(tmp_path_factory.mktemp("intake"), *options) as running:
        running.root = root
        yield running


def name() -> str:
    return f"scan_{os.urandom(4).hex()}.h5"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def stored(service, file: str) -> bytes:
    until(lambda: any(path.endswith(file) for path in service.files()), f"{file} to have its name")
    (found,) = [content for path, content in service.files().items() if path.endswith(file)]
    return found


def sent(service, file: str, content: bytes, chunk_size: int = 1000, **more) -> str:
    upload = service.prepare(file, len(content), chunk_size, **more)
    for number, chunk in enumerate(cut(content, chunk_size)):
        made(service.put(upload, number, chunk))
    return upload


def test_chunks_in_any_order_at_once_and_twice_become_the_file(service):
    content, file = os.urandom(123_456), name()
    upload = service.prepare(file, len(content), 1000)
    chunks = list(enumerate(cut(content, 1000))) * 2
    random.Random(1).shuffle(chunks)
    with ThreadPoolExecutor(8) as pool:
        assert {answer.status_code for answer in pool.map(lambda pair: service.put(upload, *pair), chunks)} == {201}
    assert service.status(upload)["missing"] == []
    whole = made(service.finalise(upload, tree(content, 1000), filename=file, fileSize=len(content), chunks=124))
    assert (whole["state"], whole["size"], whole["tree"]) == ("stored", len(content), tree(content, 1000))
    assert stored(service, file) == content
    answer = service.operator.get(f"/upload/{upload}/content", headers={"Range": "bytes=1000-1009"})
    assert (answer.status_code, answer.content) == (206, content[1000:1010])


@pytest.mark.parametrize("header", ["content-sha256", "content-blake3"])
def test_the_whole_is_proved_by_a_digest_of_plain_bytes_as_well(service, header):
    content, file = os.urandom(5500), name()
    upload = service.prepare(file, len(content), digest=header.removeprefix("content-"))
    for number, chunk in reversed(list(enumerate(cut(content, 1000)))):
        made(service.put(upload, number, chunk, content_sha256=sha256(chunk)))
    right = {"content-sha256": sha256(content), "content-blake3": blake3(content).hexdigest()}
    path = f"/upload/{upload}/finalise"
    assert service.operator.post(path, headers={header: "0" * 64}).status_code == 406
    made(service.operator.post(path, headers={header: right[header]}))
    assert stored(service, file) == content


def test_without_a_word_on_it_the_whole_is_proved_by_its_tree_which_restarts_cost_nothing(service):
    content, file = os.urandom(5500), name()
    upload = service.prepare(file, len(content))
    assert service.status(upload)["digest"] == "tree"
    for number, chunk in enumerate(cut(content, 1000)):
        made(service.put(upload, number, chunk, content_sha256=sha256(chunk)))
    made(service.operator.post(f"/upload/{upload}/finalise", headers={"content-sha256": sha256(content)}))
    assert stored(service, file) == content


def test_a_chunk_that_is_wrong_is_refused_and_not_counted(service):
    upload = service.prepare(name(), 2500)
    chunk = os.urandom(1000)
    wrong = {
        406: [(0, chunk, {"content_sha256": sha256(b"another")}), (0, chunk, {"content_blake3": "zz"})],
        400: [
            (0, chunk, {"content_tree": "0" * 64}),
            (0, chunk[:-1], {}), (0, chunk + b"x", {}), (0, b"", {}), (2, chunk, {}), (3, chunk, {}), (-1, chunk, {}),
        ],
        422: [("x", chunk, {})],
    }  # fmt: skip
    for status, requests in wrong.items():
        for number, content, headers in requests:
            assert service.put(upload, number, content, **headers).status_code == status, (number, headers)
    assert service.status(upload)["received"] == 0
    assert any(line["action"] == "refused" for line in service.operator.get("/audit?limit=1000").json())


def test_a_chunk_with_another_content_does_not_replace_the_one_that_is_there(service):
    content, file = os.urandom(1500), name()
    upload = sent(service, file, content)
    answer = service.put(upload, 0, os.urandom(1000))
    assert answer.status_code == 406
    assert "another content" in answer.text
    made(service.finalise(upload, tree(content, 1000)))
    assert stored(service, file) == content


def test_finalise_too_early_or_with_another_whole_is_refused(service):
    content = os.urandom(5000)
    upload = service.prepare(name(), len(content))
    for number in (0, 3):
        made(service.put(upload, number, cut(content, 1000)[number]))
    early = service.finalise(upload, tree(content, 1000))
    assert early.status_code == 400
    assert "3 chunks are missing yet, first 1-2, 4" in early.text
    assert service.status(upload)["missing"] == [[1, 2], [4, 4]]
    for number in (1, 2, 4):
        made(service.put(upload, number, cut(content, 1000)[number]))
    right = tree(content, 1000)
    assert service.finalise(upload).status_code == 400
    assert service.finalise(upload, "0" * 64).status_code == 406
    assert service.finalise(upload, right, fileSize=4999).status_code == 406
    assert service.finalise(upload, right, chunks=4).status_code == 400
    assert service.finalise(upload, right, fileSize="many").status_code == 400
    made(service.finalise(upload, right))


def test_finalise_is_once_however_often_it_is_asked_for(service):
    content, file = os.urandom(3000), name()
    upload = sent(service, file, content)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: service.finalise(upload, tree(content, 1000)), range(8)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["place"] for answer in answers}) == 1
    assert service.finalise(upload, "0" * 64).status_code == 406
    assert service.put(upload, 1, content[1000:2000]).status_code == 201  # came late, and is there
    assert service.operator.delete(f"/upload/{upload}").status_code == 409
    lines = service.operator.get("/audit?limit=1000").json()
    assert len([line for line in lines if line["upload"] == upload and line["action"] == "stored"]) == 1


def test_a_name_that_is_taken_keeps_both_files(service):
    file = name()
    places = []
    for content in (b"first", b"second"):
        upload = sent(service, file, content)
        places.append(made(service.finalise(upload, tree(content, 1000)))["place"])
    assert [place.rpartition("/")[2] for place in places] == [file, file.replace(".h5", " (2).h5")]
    assert [service.files()[place] for place in places] == [b"first", b"second"]


def test_the_same_key_finds_the_same_upload(service):
    file = name()
    first = service.prepare(file, 3000, key="a b c")
    made(service.put(first, 1, bytes(1000)))
    assert service.prepare(file, 3000, key="a b c") == first
    assert service.prepare(file, 3001, key="a b c") != first
    assert list(service.operator.get(f"/upload/{first}/chunks").json()) == ["1"]


def test_what_was_stored_before_need_not_be_sent(service):
    content, file = os.urandom(5000), name()
    made(service.finalise(sent(service, name(), content), tree(content, 1000)))
    changed = content[:3000] + os.urandom(2000)
    upload = service.prepare(file, len(changed))
    digests = {number: blake3(chunk).hexdigest() for number, chunk in enumerate(cut(changed, 1000))}
    assert service.operator.post(f"/upload/{upload}/known", json={"chunks": digests}).json() == {"held": [0, 1, 2]}
    for number in (3, 4):
        made(service.put(upload, number, cut(changed, 1000)[number]))
    made(service.finalise(upload, tree(changed, 1000)))
    assert stored(service, file) == changed


def by_our_own_routes(service, file: str, content: bytes) -> dict:
    return made(service.finalise(sent(service, file, content), tree(content, 1000)))


def by_tus(service, file: str, content: bytes) -> dict:
    headers = {"Tus-Resumable": "1.0.0", "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
    metadata = f"filename {base64.b64encode(file.encode()).decode()}"
    more = {"Upload-Length": str(len(content)), "Upload-Metadata": metadata}
    url = service.operator.post("/tus/", headers=headers | more).headers["location"]
    assert service.operator.patch(url, content=content, headers=headers).status_code == 204
    return service.status(url.rpartition("/")[2])


@pytest.mark.parametrize(
    ("names", "places"),
    [
        (["x", "x/y", "x/y"], ["x", "x (2)/y", "x (2)/y (2)"]),
        (["a/b/c", "a/b"], ["a/b/c", "a/b (2)"]),
        ([f"n{'é' * 125}b.h5"] * 2, [f"n{'é' * 125}b.h5", f"n{'é' * 123} (2).h5"]),
        ([f"n.{'s' * 253}"] * 2, [f"n.{'s' * 253}", f"n.{'s' * 249} (2)"]),
        (["/".join(["p" * 100] * 10)], ["/".join(["p" * 100] * 10)]),
    ],
)
@pytest.mark.parametrize("send", [by_our_own_routes, by_tus])
def test_where_a_name_can_not_be_had_another_one_is_found(service, send, names, places):
    folder = os.urandom(4).hex()
    for file, place in zip(names, places, strict=True):
        content = os.urandom(10)
        upload = send(service, f"{folder}/{file}", content)
        assert upload["place"].split("/", 2)[1:] == [folder, place]
        assert service.operator.get(f"/upload/{upload['file_id']}/content").content == content


@pytest.mark.parametrize("size", [0, 1, 1000, 1001])
def test_small_and_empty_files(service, size):
    content, file = os.urandom(size), name()
    made(service.finalise(sent(service, file, content), tree(content, 1000)))
    assert stored(service, file) == content


@pytest.mark.parametrize(
    "file",
    ["", "/etc/passwd", "../up", "a/../../b", ".hidden", "a//b", "a/.part", "a\\b", "a\nb", "x" * 256, "x/" * 513],
)
def test_names_that_lead_elsewhere_are_refused(service, file):
    given = {"name": file, "size": 1}
    assert service.operator.post("/upload/prepare/", json=given).status_code == 400


@pytest.mark.parametrize(
    "given",
    [{}, {"name": "a", "size": -1}, {"name": "a", "file_path": "b"}, {"name": "a", "size": 1, "colour": 1},
     {"name": "a", "size": 1, "digest": "md5"}, {"name": "a", "size": 1, "chunk_size": 0}],
)  # fmt: skip
def test_announcements_that_make_no_sense_are_refused(service, given):
    assert service.operator.post("/upload/prepare/", json=given).status_code == 422


def test_chunks_too_large_or_too_many_are_refused(service):
    assert "not taken" in service.operator.post(
        "/upload/prepare/", json={"name": "a", "size": 1 << 30, "chunk_size": 1 << 30}).text  # fmt: skip
    answer = service.operator.post("/upload/prepare/", json={"name": "a", "size": 1_000_001, "chunk_size": 1})
    assert (answer.status_code, "too many" in answer.text) == (400, True)
    answer = service.operator.post("/upload/prepare/", json={"name": "a", "size": 1 << 50, "chunk_size": 32 << 20})
    assert answer.status_code in (400, 507)


# Old clients


def old_digest(content: bytes) -> dict[str, str]:
    return {"content-sha256": hmac.new(OLD_KEY.encode(), content, hashlib.sha256).hexdigest()}


def test_old_clients_send_json_and_hmacs_and_tell_the_size_at_the_end(service):
    content, file = os.urandom((2 << 20) + 7), name()
    upload = made(service.operator.post("/upload/prepare/", json={"name": file}))["file_id"]
    for number, chunk in enumerate(cut(content, 1 << 20)):
        body = {"chunk": base64.b64encode(chunk).decode()}
        path = f"/upload/{upload}/chunk/{number}"
        assert service.operator.post(path, json=body, headers=old_digest(chunk + b"x")).status_code == 406
        made(service.operator.post(path, json=body, headers=old_digest(chunk)))
    form = {"filename": file, "fileSize": len(content), "chunks": 3}
    path = f"/upload/{upload}/finalise"
    assert service.operator.post(path, data={"filename": file}, headers=old_digest(content)).status_code == 400
    assert service.operator.post(path, data=form, headers=old_digest(b"x")).status_code == 406
    made(service.operator.post(path, data=form, headers=old_digest(content)))
    assert stored(service, file) == content


def test_a_chunk_in_json_that_memory_can_never_hold_is_refused_at_once(tmp_path):
    with intake(tmp_path, "--memory", "2MiB", "--old-clients-key", OLD_KEY) as service:
        upload, chunk = service.prepare("old.h5", None, 1 << 20), os.urandom(1 << 20)
        answer = service.operator.post(
            f"/upload/{upload}/chunk/0", json=base64.b64encode(chunk).decode(), headers=old_digest(chunk)
        )
        assert (answer.status_code, "send smaller chunks" in answer.text) == (400, True)


def test_json_that_holds_no_chunk_is_refused(service):
    upload = service.prepare(name(), None)
    path = f"/upload/{upload}/chunk/0"
    for body in (b"{", b"[1]", b'{"a": "AAAA", "b": "AAAA"}', b'{"a": "*"}', b"3", b"{}"):
        headers = {"content-type": "application/json", **old_digest(b"")}
        assert service.operator.post(path, content=body, headers=headers).status_code == 400


# Files that lie here


def test_a_file_below_a_root_is_taken_by_its_path(service):
    content = os.urandom(3_000_001)
    (service.root / "scan").mkdir(exist_ok=True)
    (service.root / "scan" / "here.h5").write_bytes(content)
    for path in (str(service.root / "scan" / "here.h5"), "scan/here.h5"):
        upload = made(service.operator.post("/upload/prepare/", json={"file_path": path}))["file_id"]
        service.until(upload, "stored")
    assert stored(service, "scan/here.h5") == content


def test_nothing_else_can_be_prepared_by_its_path(service):
    (service.root / "link.h5").symlink_to("/etc/passwd")
    for path in ("/etc/passwd", "../secret", "link.h5", "absent.h5", ""):
        answer = service.operator.post("/upload/prepare/", json={"file_path": path})
        assert (answer.status_code, "can't be prepared" in answer.text) == (400, True), path


# Who may


def test_without_a_token_that_is_known_nothing_is_taken(service):
    upload = service.prepare(name(), 10)
    for client in (service.client(), service.client("foreign")):
        for method, path in [
            ("POST", "/upload/prepare/"), ("POST", f"/upload/{upload}/chunk/0"), ("POST", f"/upload/{upload}/finalise"),
            ("GET", f"/upload/{upload}"), ("GET", "/uploads"), ("DELETE", f"/upload/{upload}"), ("GET", "/audit"),
        ]:  # fmt: skip
            answer = client.request(method, path, json={"name": "a", "size": 1} if method == "POST" else None)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), path


def test_people_log_in_by_a_form_and_send_within_their_rights(service):
    stranger = service.client()
    made(stranger.post("/register", json={"name": "ada", "password": PASSWORD}))
    for given in (
        {"data": {"username": "ada", "password": "guessed wrong"}},
        {"json": {"username": "eve", "password": "y"}},
    ):
        assert stranger.post("/auth/token/", **given).status_code == 401
    assert stranger.post("/auth/token/", data={"username": "ada"}).status_code == 400
    assert stranger.post("/auth/token/", data={"username": "x" * 5000}).status_code == 413
    form = {"grant_type": "password", "username": "ada", "password": PASSWORD}
    ada = service.client(stranger.post("/auth/token/", data=form).raise_for_status().json()["access_token"])
    given = {"name": "mine.h5", "size": 5000, "chunk_size": 1000}
    assert ada.post("/upload/prepare/", json=given).status_code == 402
    service.operator.patch("/people/ada", json={"licence": "1 day", "quota": "8kB"}).raise_for_status()
    mine = made(ada.post("/upload/prepare/", json=given))["file_id"]
    assert ada.post("/upload/prepare/", json=given).status_code == 429
    others = service.prepare(name(), 10)
    assert ada.get(f"/upload/{others}").status_code == 404
    assert [upload["file_id"] for upload in ada.get("/uploads").json()] == [mine]
    assert ada.get("/audit").status_code == 403
    assert ada.delete(f"/upload/{mine}").status_code == 204
    assert ada.post(f"/upload/{mine}/finalise", headers={"content-tree": "0" * 64}).status_code == 410
    made(ada.post("/upload/prepare/", json=given))  # what was given up does not count


# Lines that break


def raw(service, upload: str, head: str, body: bytes) -> socket.socket:
    url = httpx.URL(service.url)
    line = socket.create_connection((url.host, url.port), timeout=20)
    fixed = f"POST /upload/{upload}/chunk/0 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {service.token}\r\n"
    line.sendall(fixed.encode() + head.encode() + b"\r\n" + body)
    return line


@pytest.mark.parametrize("length", ["Content-Length: 1000\r\n", "Content-Length: 1001\r\n", "Content-Length: 999\r\n"])
def test_what_is_cut_or_lies_about_its_length_is_not_counted(service, length):
    upload = service.prepare(name(), 1000)
    with raw(service, upload, f"{length}content-blake3: {'0' * 64}\r\n", b"x" * 500):
        pass
    assert service.status(upload)["received"] == 0
    made(service.put(upload, 0, bytes(1000)))


def test_a_body_without_length_may_not_be_longer_than_the_chunk(service):
    upload = service.prepare(name(), 1000)
    body = b"7d0\r\n" + bytes(2000) + b"\r\n0\r\n\r\n"
    with raw(service, upload, f"Transfer-Encoding: chunked\r\ncontent-blake3: {'0' * 64}\r\n", body) as line:
        assert line.recv(100).startswith(b"HTTP/1.1 400")


def test_a_sender_that_stops_is_given_up(tmp_path):
    with intake(tmp_path, "--stall", "1 s") as service:
        upload = service.prepare(name(), 1000)
        with raw(service, upload, f"Content-Length: 1000\r\ncontent-blake3: {'0' * 64}\r\n", b"x" * 500) as line:
            assert line.recv(100).startswith(b"HTTP/1.1 408")


def test_senders_that_stop_hold_up_nobody_for_long(service):
    upload = service.prepare(name(), 32 << 20, 32 << 20)
    head = f"Content-Length: {32 << 20}\r\ncontent-blake3: {'0' * 64}\r\n"
    with raw(service, upload, head, b"x"):
        other = service.prepare(name(), 1000)
        made(service.put(other, 0, bytes(1000)))


# Time, room, kills


def test_uploads_expire_and_leave_nothing(tmp_path):
    with intake(tmp_path, "--expire", "0.2 s") as service:
        upload = service.prepare("slow.h5", 2000)
        service.put(upload, 0, bytes(1000))
        service.process.stop()
        service.start()
        service.until(upload, "expired")
        until(lambda: not list((service.store / ".uploads").iterdir()), "its file is deleted")
        assert service.put(upload, 1, bytes(1000)).status_code == 410
        with sqlite3.connect(tmp_path / "intake.db") as database:
            assert database.execute("SELECT count(*) FROM upload_chunks").fetchone() == (0,)
        database.close()


def test_what_there_is_no_room_for_is_refused_before_its_first_byte(tmp_path):
    with intake(tmp_path, "--space", "10kB", "--no-registration") as service:
        service.prepare("a", 6000)
        answer = service.operator.post("/upload/prepare/", json={"name": "b", "size": 6000})
        assert (answer.status_code, "left of the 10000" in answer.text) == (507, True)
        assert service.client().post("/register", json={"name": "ada", "password": PASSWORD}).status_code == 403
        content = service.operator.post("/upload/prepare/", json={"file_path": "/etc/passwd"})
        assert (content.status_code, "no folder is configured" in content.text) == (400, True)
        json_chunk = {"content": b"{}", "headers": {"content-type": "application/json", "content-sha256": "0"}}
        assert service.operator.post(f"/upload/{service.prepare('c', 9)}/chunk/0", **json_chunk).status_code == 400


def all_at_once(service, count: int, given: dict, client=None) -> list[httpx.Response]:
    """Announce as many files at the same moment."""
    barrier = threading.Barrier(count)

    def announce(_: int) -> httpx.Response:
        barrier.wait()
        return (client or service.operator).post("/upload/prepare/", json=given)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(announce, range(count)))


def test_no_more_is_promised_than_there_is_however_many_ask_at_once(tmp_path):
    with intake(tmp_path, "--space", 10_000, "--licence", "1 day", "--quota", 7000) as service:
        made(service.client().post("/register", json={"name": "ada", "password": PASSWORD}))
        form = {"username": "ada", "password": PASSWORD}
        login = service.client().post("/auth/token/", data=form).raise_for_status().json()
        ada = service.client(login["access_token"])
        file = {"name": "a", "size": 3000, "chunk_size": 1000}
        for client, allowed, status in ((ada, 2, 429), (None, 1, 507)):
            statuses = [answer.status_code for answer in all_at_once(service, 16, file, client)]
            assert sorted(statuses) == [201] * allowed + [status] * (16 - allowed)


def test_a_key_begins_one_upload_however_many_ask_at_once(service):
    for _ in range(5):
        answers = all_at_once(service, 16, {"name": "a", "size": 3000, "key": os.urandom(4).hex()})
        assert len({made(answer)["file_id"] for answer in answers}) == 1


def test_a_disk_that_fills_up_costs_the_chunk_that_came_alone(tmp_path):
    with intake(tmp_path, "--unknown-size", "10MB", "--old-clients-key", OLD_KEY) as service:
        chunks = [os.urandom(1 << 20) for _ in range(3)]
        upload = service.prepare("a.h5", None, 1 << 20, digest="tree")
        made(service.put(upload, 0, chunks[0]))
        process = service.process.process.pid
        resource.prlimit(process, resource.RLIMIT_FSIZE, (5 << 19, resource.RLIM_INFINITY))
        full = service.put(upload, 2, chunks[2])
        resource.prlimit(process, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert (full.status_code, "nothing that was verified is lost" in full.text) == (507, True)
        for number in (1, 2):
            made(service.put(upload, number, chunks[number]))
        made(service.finalise(upload, tree(b"".join(chunks), 1 << 20), fileSize=3 << 20))
        assert list(service.files().values()) == [b"".join(chunks)]


def test_a_kill_between_the_decision_and_the_rename_is_made_good(tmp_path):
    with intake(tmp_path) as service:
        upload = sent(service, "a.h5", b"whole")
        service.process.kill()
        with sqlite3.connect(tmp_path / "intake.db") as database:
            database.execute("UPDATE uploads SET state = 'stored', place = 'x/a.h5', exact = 1")
        database.close()
        service.start()
        until(lambda: service.files() == {"x/a.h5": b"whole"}, "it is renamed")
        assert service.status(upload)["state"] == "stored"


def read_by(process: int) -> int:
    """Return how many bytes a process has read, from whatever."""
    return int(re.search(r"rchar: (\d+)", Path(f"/proc/{process}/io").read_text())[1])


def test_ten_gigabytes_are_finalised_without_reading_them(service):
    """How long that takes is measured in benchmarks/bench_upload.py."""
    size, chunk = 10_000_000_000, 4 << 20
    upload = service.prepare("large.h5", size, chunk, digest="tree")
    leaf, last = blake3(bytes(chunk)).digest(), size % chunk
    rest = blake3(bytes(last)).digest()
    count = size // chunk
    with sqlite3.connect(service.folder / "intake.db") as database:  # as if the zeros had been sent
        rows = [(upload, number, chunk, leaf) for number in range(count)] + [(upload, count, last, rest)]
        database.executemany("INSERT INTO upload_chunks VALUES (?, ?, ?, ?)", rows)
    database.close()
    before = read_by(service.process.process.pid)
    answer = service.finalise(upload, blake3(leaf * count + rest).hexdigest())
    assert read_by(service.process.process.pid) - before < 10e6
    (service.store / made(answer)["place"]).unlink()  # the other tests look at all files


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_postgresql_keeps_uploads_as_well(tmp_path, database_url):
    with intake(tmp_path, database=database_url) as service:
        content = os.urandom(20_000)
        upload = service.prepare("a.h5", len(content))
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda pair: made(service.put(upload, *pair)), enumerate(cut(content, 1000))))
        made(service.finalise(upload, tree(content, 1000)))
        assert list(service.files().values()) == [content]


def test_the_room_is_shared_and_given_back(tmp_path):
    with intake(tmp_path, "--memory", "1MiB") as service:
        content = os.urandom(20 << 20)
        upload = service.prepare("a.h5", len(content), 1 << 20)
        barrier = threading.Barrier(8)

        def send(worker: int) -> None:
            barrier.wait()
            for number in range(worker, 20, 8):
                made(service.put(upload, number, cut(content, 1 << 20)[number]))

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(send, range(8)))
        made(service.finalise(upload, tree(content, 1 << 20)))
        assert list(service.files().values()) == [content]
