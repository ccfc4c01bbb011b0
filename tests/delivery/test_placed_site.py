"""What a site answers to clients, good and bad: the right status, clear words, and nothing half kept."""

import re
import resource
import threading

import pytest

from tests.delivery.placed_sites import ONES, SITES, ZEROS, Pair, form, memory, pair, raw
from tests.delivery.sync_programs import until

pytestmark = pytest.mark.xdist_group("placed_site")  # one pair of sites for all

KIND = "Content-Type: multipart/form-data; boundary=b"


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    options = ["--largest", 50_000_000, "--uploads", 4]
    with pair(tmp_path_factory.mktemp("site"), *options, of={"one": ["--stall", 1]}) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_is_left_aside(both: Pair):
    yield
    until(lambda: not any(list((both.folder / site / "incoming").iterdir()) for site in SITES), "nothing is left aside")


def sent(
    both: Pair, body: bytes, *, kind: str = KIND, length: int | None = None, close: bool = False, site: str = "zero"
) -> str:
    head = [kind, f"Content-Length: {len(body) if length is None else length}", "Connection: close"]
    return raw(both, site, head, body, then_close=close).decode()


def test_the_old_interface_holds(both):
    answer = both.upload("zero", "old.bin", ZEROS)
    assert answer.status_code == 201
    assert "old.bin" in answer.json()["message"]
    listing = both.ask("zero", "/data").json()
    assert listing.keys() == {"total_size", "list_metadata"}
    assert listing["list_metadata"][answer.json()["id"]] == {"name": "old.bin", "size": 1000}
    assert "multipart/form-data" in both.ask("zero", "/openapi.json").text
    assert both.ask("zero", "/docs").status_code == 200
    assert both.ask("zero", "/healthz").text == "ok\n"
    assert re.search(r'delivery_placed_files\{state="here"\} [1-9]', both.ask("zero", "/metrics").text)


def test_a_message_that_breaks_off_is_no_fault_of_the_site(both):
    raw(both, "zero", ["Content-Length: 300"], b"half", path="/messages", who="one", then_close=True)
    assert both.ask("zero", "/healthz").text == "ok\n"
    assert 'status="500"' not in both.ask("zero", "/metrics").text


@pytest.mark.parametrize("name", ["a b.h5", "é☃.h5", 'quo"te', "%22", "a;b", "x" * 255])
def test_names_are_kept_as_they_were_given(both, name):
    body = form(name.replace('"', '\\"'), name.encode() + bytes(300))
    assert sent(both, body).startswith("HTTP/1.1 201")
    assert name in both.listed("zero")


@pytest.mark.parametrize("name", ["", ".", "..", "../up", "a/b", "a\x01b", "x" * 256])
def test_names_that_are_none_are_refused(both, name):
    assert sent(both, form(name, ZEROS)).startswith("HTTP/1.1 400")


@pytest.mark.parametrize(
    ("body", "kind", "status", "words"),
    [
        (form("a", ZEROS).replace(b'"file"', b'"other"'), KIND, 400, "no file in a field called"),
        (b"--b--\r\n", KIND, 400, "no file in a field called"),
        (b"", KIND, 400, "ended before the form did"),
        (form("a", ZEROS, end=b""), KIND, 400, "ended before the form did"),
        (form("a", ZEROS, end=b"\r\n") + form("c", ONES)[5:], KIND, 400, "several files"),
        (b"rubbish", KIND, 400, "no multipart form"),
        (form("a", ZEROS), "Content-Type: application/json", 415, "multipart/form-data"),
        (form("a", ZEROS), "Content-Type: multipart/form-data", 415, "multipart/form-data"),
        (form("a", ZEROS), KIND + "b" * 300, 415, "multipart/form-data"),
        (form("a", ZEROS).replace(b"\r\n\r\n", b"\r\nX: " + b"x" * 9000 + b"\r\n\r\n", 1), KIND, 400, "no multipart"),
    ],
)
def test_bodies_that_are_no_upload_are_refused(both, body, kind, status, words):
    before = both.listed("zero")
    answer = sent(both, body, kind=kind)
    assert answer.startswith(f"HTTP/1.1 {status}")
    assert words in answer
    assert both.listed("zero") == before


def test_a_length_that_is_a_lie_keeps_nothing(both):
    before = both.listed("zero")
    body = form("liar", ZEROS)
    assert "201" not in sent(both, body, length=len(body) + 100, close=True)
    both.running["zero"].wait_for("stopped in the middle")
    short = sent(both, body, length=len(body) - 10)
    assert "ended before the form did" in short
    assert both.listed("zero") == before


def test_a_client_that_falls_silent_is_given_up(both):
    body = form("silent", ZEROS)[:500]
    answer = sent(both, body, length=2000, site="one")
    assert answer.startswith("HTTP/1.1 408")


def test_who_may_not_is_told_so(both):
    assert both.ask("zero", "/data", who="nobody").status_code == 401
    assert both.ask("zero", "/data/upload", "POST", who="x", files={"file": ("a", ZEROS)}).status_code == 401
    for path, method in {"/copies": "GET", "/messages": "POST", "/set-aside": "GET"}.items():
        assert both.ask("zero", path, method).status_code == 403
    assert both.ask("zero", "/data/" + "0" * 32).status_code == 404
    assert both.ask("zero", "/data/..%2f..%2fetc/file").status_code == 404


def test_what_is_too_large_or_has_no_room_is_refused_before_it_comes(both):
    huge = sent(both, b"", length=60_000_000)
    assert huge.startswith("HTTP/1.1 413")
    assert both.upload("zero", "large", bytes(50_000_001)).status_code == 413


def test_a_disk_that_is_full_loses_nothing(both):
    process = both.running["zero"].process.pid
    before = both.listed("zero")
    resource.prlimit(process, resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
    try:
        answer = both.upload("zero", "full", bytes(2_000_000))
    finally:
        resource.prlimit(process, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert answer.status_code == 507
    assert "disk is full" in answer.json()["detail"]
    assert both.listed("zero") == before
    assert both.upload("zero", "full", bytes(2_000_000)).status_code == 201


def test_a_fetch_that_a_full_disk_cuts_in_its_last_block_is_not_taken_for_the_whole(both):
    process = both.running["one"].process.pid
    resource.prlimit(process, resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
    try:
        assert both.upload("zero", "cut", b"\xff" * 1_040_000).status_code == 201
        both.running["one"].wait_for("not placed yet .* name=cut .*too large")
        assert "cut" not in both.listed("one")
    finally:
        resource.prlimit(process, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    both.rest()
    assert both.listed("one")["cut"] == 1_040_000


def test_uploads_at_once_take_little_memory(both):
    content = bytes(40_000_000)
    uploads = [threading.Thread(target=both.upload, args=("zero", f"many{number}", content)) for number in range(8)]
    for upload in uploads:
        upload.start()
    for upload in uploads:
        upload.join()
    assert sum(name.startswith("many") for name in both.listed("zero")) == 8
    assert memory(both.running["zero"].process.pid) < 150e6
