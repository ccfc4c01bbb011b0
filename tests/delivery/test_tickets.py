"""Tickets of a real service: asked for, prepared, fetched; while files change, disks fill and processes are killed."""

import base64
import hashlib
import json
import os
import resource
import time
from pathlib import Path

import httpx
import pytest

from tests.delivery.sync_programs import until
from tests.delivery.ticket_service import accepted, contents, events, sql, ticket_service

BIG = 2_000_000


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tickets")
    options = "--external", "https://data.example.org/out/", "--attic", folder / "attic", "--heartbeat", "100 ms"
    with ticket_service(folder, *options) as running:
        yield running


@pytest.fixture(scope="module")
def tight(tmp_path_factory):
    """A service whose store has room for one archive of `BIG` bytes and a little more."""
    with ticket_service(tmp_path_factory.mktemp("tight"), "--space", "3MB", "--preparations", 2) as running:
        yield running


@pytest.fixture
def full(tight):
    """The same, with one archive on its way out of the store in an hour; what else was asked for is forgotten."""
    for name, size in {"big.h5": BIG, "other.h5": BIG, "little.h5": 1000}.items():
        tight.write(name, size)
    tight.holder = tight.ask("big.h5", keep="1 hour")
    tight.until(tight.holder, "ready")
    yield tight
    for ticket in tight.operator.get("/tickets").json():
        tight.operator.delete(f"/ticket/{ticket['ticketId']}")
    until(lambda: not list(tight.store.rglob("*.zip")), "the store to be empty")


def test_what_was_asked_for_comes_whole_in_ranges_and_with_its_digest(service):
    files = {"a/1.h5": service.write("a/1.h5", BIG), "a/2.h5": service.write("a/2.h5", 10)}
    ticket = service.ask("a/")
    volume = service.until(ticket, "ready")["volumes"][0]
    answer = service.fetch(ticket)
    assert contents(answer.content) == files
    digest = hashlib.sha256(answer.content)
    assert volume["sha256"] == digest.hexdigest()
    assert answer.headers["repr-digest"] == f"sha-256=:{base64.b64encode(digest.digest()).decode()}:"
    assert len(answer.content) == volume["length"] == int(answer.headers["content-length"])
    part = service.fetch(ticket, headers={"Range": "bytes=1000-1999", "If-Range": volume["etag"]})
    assert (part.status_code, part.content) == (206, answer.content[1000:2000])
    assert volume["url"] == f"https://data.example.org/out/ticket/{ticket}/result?volume=1"


def test_events_are_numbered_and_replayed_with_signs_of_life(service):
    service.write("events.h5", 10)
    ticket = service.ask("events.h5")
    first = events(service, ticket)
    assert [state for _, state in first if state != "preparing"] == ["waiting", "ready"]
    assert events(service, ticket, first[0][0]) == first[1:]
    headers = {"Accept": "text/event-stream", "Last-Event-ID": str(first[-1][0])}
    with service.operator.stream("GET", f"/ticket/{ticket}/status", headers=headers) as answer:
        lines = answer.iter_lines()
        assert next(line for line in lines if line.startswith(":"))
        assert service.operator.delete(f"/ticket/{ticket}").status_code == 204
        assert "cancelled" in next(line for line in lines if line.startswith("data:"))
        assert [line for line in lines if line] == []
    last = service.operator.get(f"/ticket/{ticket}/status", headers={"Accept": "*/*", "Last-Event-ID": "999999999"})
    assert last.status_code == 204


def test_the_same_request_on_the_same_versions_shares_one_artefact(service):
    service.write("shared.h5", BIG)
    tickets = [service.ask("shared.h5") for _ in range(5)]
    volumes = [service.until(ticket, "ready")["volumes"][0] for ticket in tickets]
    assert len({volume["etag"] for volume in volumes}) == 1
    artefact = volumes[0]["name"].removeprefix("files_").removesuffix(".zip")

    def zips() -> list[Path]:
        return list(service.store.rglob(f"{artefact}*/*.zip"))

    assert len(zips()) == 1
    for ticket in tickets[1:]:
        service.operator.delete(f"/ticket/{ticket}")
    assert service.fetch(tickets[0]).status_code == 200
    service.operator.delete(f"/ticket/{tickets[0]}")
    until(lambda: not zips(), "the artefact to be deleted")


def test_who_comes_while_the_same_is_just_made_has_it_too(service):
    for number in range(15):
        service.write(f"just/{number}.h5", BIG)
        tickets = [service.ask(f"just/{number}.h5") for _ in range(5)]
        assert {service.until(ticket, "ready", "failed")["state"] for ticket in tickets} == {"ready"}
        for ticket in tickets:
            service.operator.delete(f"/ticket/{ticket}")


def test_volumes_hold_no_more_than_was_asked_for(service):
    files = {f"v/{i}.h5": service.write(f"v/{i}.h5", 1000) for i in range(5)}
    ticket = service.ask("v/*", volume="2kB")
    volumes = service.until(ticket, "ready")["volumes"]
    found = [contents(service.fetch(ticket, params={"volume": i}).content) for i in (1, 2, 3)]
    assert [len(part) for part in found] == [2, 2, 1] == [2, 2, len(volumes) - 2]
    assert {name: content for part in found for name, content in part.items()} == files
    assert service.fetch(ticket, params={"volume": 4}).status_code == 404


def test_files_that_changed_since_are_prepared_anew(service):
    service.write("changing.h5", b"old")
    ticket = service.ask("changing.h5")
    service.until(ticket, "ready")
    service.write("changing.h5", b"newer")
    answer = service.fetch(ticket)
    assert (answer.status_code, answer.json()["files"]) == (409, ["changing.h5"])
    service.until(ticket, "ready")
    assert contents(service.fetch(ticket).content) == {"changing.h5": b"newer"}


def test_a_file_that_changes_while_it_is_sent_breaks_the_answer_off(service):
    service.write("underway.h5", 64_000_000)
    ticket = service.ask("underway.h5", prepare=False)
    service.until(ticket, "ready")
    with service.operator.stream("GET", f"/ticket/{ticket}/result") as answer:
        with (service.files / "underway.h5").open("r+b") as file:
            file.write(b"x")
        with pytest.raises(httpx.RemoteProtocolError):
            answer.read()
    assert service.fetch(ticket).status_code == 409
    service.until(ticket, "ready")
    assert contents(service.fetch(ticket).content) == {"underway.h5": (service.files / "underway.h5").read_bytes()}


def test_a_prepared_copy_of_deleted_files_is_served_and_marked(service):
    service.write("deleted.h5", b"content")
    ticket = service.ask("deleted.h5")
    service.until(ticket, "ready")
    (service.files / "deleted.h5").unlink()
    status, answer = service.status(ticket), service.fetch(ticket)
    assert (status["source"], status["missing"]) == ("deleted", ["deleted.h5"])
    assert (answer.status_code, answer.headers["x-source"]) == (200, "deleted")
    assert contents(answer.content) == {"deleted.h5": b"content"}


def test_deleted_files_that_nothing_was_prepared_of_are_gone(service):
    service.write("gone.h5", b"content")
    service.write("there.h5", b"content")
    ticket = service.ask("gone.h5", "there.h5", prepare=False)
    assert service.until(ticket, "ready")["volumes"][0]["sha256"] == ""
    assert set(contents(service.fetch(ticket).content)) == {"gone.h5", "there.h5"}
    (service.files / "gone.h5").unlink()
    for _ in range(2):
        answer = service.fetch(ticket)
        assert (answer.status_code, answer.json()["files"]) == (410, ["gone.h5"])


def test_what_cannot_be_had_is_refused_with_a_list(service, tmp_path):
    (service.files / "link.h5").symlink_to(tmp_path)
    answer = service.operator.post("/download", json={"paths": ["nothing.h5", "../up.h5", "link.h5", "no*match"]})
    assert answer.status_code == 404
    assert sorted(item["path"] for item in answer.json()["files"]) == ["../up.h5", "link.h5", "no*match", "nothing.h5"]
    (service.files / "link.h5").unlink()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"paths": []}, 422),
        ({"paths": ["a"], "priority": 10}, 422),
        ({"paths": ["a"], "keep": "long"}, 422),
        ({"paths": ["x.h5"], "keep": "1000 days"}, 400),
        ({"paths": ["x.h5"], "after": "nobody"}, 404),
        ({"paths": ["x.h5"], "colour": "red"}, 422),
        ({"paths": ["\ud800.h5"]}, 422),
    ],
)
def test_requests_beyond_the_limits_are_refused(service, request_, status):
    service.write("x.h5", b"x")
    headers = {"Content-Type": "application/json"}
    answer = service.operator.post("/download", content=json.dumps(request_), headers=headers)
    assert (answer.status_code, type(answer.json()["detail"])) == (status, str)


def test_counted_downloads_end_a_ticket(service):
    service.write("counted.h5", BIG)
    ticket = service.ask("counted.h5", downloads=2)
    length = service.until(ticket, "ready")["volumes"][0]["length"]
    service.fetch(ticket, headers={"Range": "bytes=0-99"})
    service.fetch(ticket, headers={"Range": f"bytes=100-{length}"})
    until(lambda: service.status(ticket)["downloads"] == 1, "the first download to be counted")
    service.fetch(ticket)
    assert "fetched 2 times" in service.until(ticket, "expired")["reason"]
    assert service.fetch(ticket).status_code == 410


def test_results_expire_and_move_to_the_attic_if_asked(service):
    service.write("expiring.h5", BIG)
    ticket = service.ask("expiring.h5", keep="1 hour", then="move")
    content = service.until(ticket, "ready") and service.fetch(ticket).content
    sql(service, "UPDATE tickets SET expires = 1 WHERE id = ?", ticket)
    service.until(ticket, "expired")
    until(lambda: list((service.folder / "attic").rglob("*.zip")), "the artefact to be moved")
    assert [path.read_bytes() for path in (service.folder / "attic").rglob("*.zip")] == [content]
    assert service.fetch(ticket).status_code == 410
    assert service.operator.post(f"/ticket/{ticket}/retry").status_code == 200
    service.until(ticket, "ready")


def test_signed_links_need_no_login_and_are_good_for_one_ticket_only(service):
    service.write("linked.h5", b"content")
    ticket, other = service.ask("linked.h5"), service.ask("linked.h5", prepare=False)
    service.until(ticket, "ready")
    service.until(other, "ready")
    url = service.operator.post(f"/ticket/{ticket}/link").json()["url"]
    assert url.startswith(f"https://data.example.org/out/ticket/{ticket}/result?")
    stranger, place = service.client(), url.removeprefix("https://data.example.org/out")
    assert contents(stranger.get(place).content) == {"linked.h5": b"content"}
    assert stranger.get(place.replace(ticket, other)).status_code == 403
    assert stranger.get(place.replace("until=1", "until=2")).status_code == 403
    assert stranger.get(f"/ticket/{ticket}/result").status_code == 401


def test_a_disk_that_is_full_fails_the_ticket_and_a_retry_does_when_there_is_room(service):
    service.write("full.h5", 10 * BIG)
    process, before = service.process.process.pid, {path for path in service.store.rglob("*") if path.is_file()}
    limit = 8 * BIG  # of each file: the database's own are smaller
    resource.prlimit(process, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        ticket = service.ask("full.h5")
        assert "File too large" in service.until(ticket, "failed")["reason"]
    finally:
        resource.prlimit(process, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert {path for path in service.store.rglob("*") if path.is_file()} == before
    assert service.operator.post(f"/ticket/{ticket}/retry").status_code == 200
    service.until(ticket, "ready")
    assert contents(service.fetch(ticket).content) == {"full.h5": (service.files / "full.h5").read_bytes()}


def test_stored_files_are_deleted_by_a_task_of_its_own_once_the_one_before_succeeded(service):
    service.write("d/1.h5", b"1")
    service.write("d/2.h5", b"2")
    first = service.ask("d/")
    deletion = accepted(service.operator.post("/deletion", json={"paths": ["d/"], "after": first}))
    assert service.until(deletion, "done")["reason"] == "2 files deleted"
    assert service.status(first)["state"] == "ready"
    assert list((service.files / "d").iterdir()) == []
    assert service.fetch(deletion).status_code == 409


def test_what_follows_a_ticket_that_came_to_nothing_fails(full):
    waiting = full.ask("other.h5")
    deletion = accepted(full.operator.post("/deletion", json={"paths": ["other.h5"], "after": waiting}))
    full.operator.delete(f"/ticket/{waiting}")
    assert "cancelled" in full.until(deletion, "failed")["reason"]
    assert (full.files / "other.h5").exists()


def test_what_does_not_fit_waits_while_what_fits_runs(full):
    waiting = full.ask("other.h5", priority=9)
    little = full.ask("little.h5", keep="1 minute")
    full.until(little, "ready")
    assert full.status(waiting)["state"] == "waiting"
    full.operator.delete(f"/ticket/{full.holder}")
    full.until(waiting, "ready")


def test_files_are_added_to_a_ticket_that_waits_and_to_no_other(full):
    waiting = full.ask("other.h5")
    answer = full.operator.post(f"/ticket/{waiting}/files", json={"paths": ["little.h5"]})
    assert (answer.status_code, answer.json()["files"]) == (200, 2)
    assert full.operator.post(f"/ticket/{waiting}/files", json={"paths": ["big.h5"]}).status_code == 413
    full.operator.delete(f"/ticket/{full.holder}")
    full.until(waiting, "ready")
    assert set(contents(full.fetch(waiting).content)) == {"other.h5", "little.h5"}
    assert full.operator.post(f"/ticket/{waiting}/files", json={"paths": ["little.h5"]}).status_code == 409


def test_a_queue_entry_expires(full):
    waiting = full.ask("other.h5", wait="100 ms")
    assert "waited longer" in full.until(waiting, "expired")["reason"]


def test_files_that_change_or_go_while_a_ticket_waits(full):
    changed, gone = full.ask("other.h5"), full.ask("little.h5", "other.h5")
    full.write("other.h5", 500)
    (full.files / "little.h5").unlink()
    full.operator.delete(f"/ticket/{full.holder}")
    full.until(changed, "ready")
    assert set(contents(full.fetch(changed).content)) == {"other.h5"}
    assert full.until(gone, "gone")["missing"] == ["little.h5"]
    assert full.fetch(gone).status_code == 410


def test_killed_it_goes_on_by_itself(tmp_path, database_url):
    with ticket_service(tmp_path, "--preparations", 1, "--space", "1GB", database=database_url) as service:
        files: dict[str, dict[str, bytes]] = {}

        def under_way() -> bool:
            """Look for an archive that is being made; ask for one more where all are done."""
            if all(service.status(ticket)["state"] == "ready" for ticket in files):
                name = f"{len(files)}.h5"
                files[service.ask(name)] = {name: content}
            return any(service.store.rglob("*#*"))

        def was_put_back() -> bool:
            until(under_way, "a preparation to be under way")
            service.kill()
            service.start()
            return any("waiting" in [state for _, state in events(service, ticket)][1:] for ticket in files)

        content = os.urandom(20_000_000)
        for index in range(50):
            service.write(f"{index}.h5", content)
        began = time.monotonic()
        until(was_put_back, "a kill in the middle of a preparation", 120)
        assert time.monotonic() - began < 60  # nothing waits for a lease of the dead to end
        for ticket, expected in files.items():
            service.until(ticket, "ready")
            assert contents(service.fetch(ticket).content) == expected
        assert len(list(service.store.rglob("*"))) == 2 * len(files) + 1  # archives, their folders, the folder of these
