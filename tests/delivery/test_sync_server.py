"""What the sync server answers: to brokers old and new, to strangers, and when the world changes meanwhile."""

import os
import re
import resource
import threading
import time
import zipfile
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from blake3 import blake3
from prometheus_client.parser import text_string_to_metric_families

from delivery.archive.layout import MANIFEST
from delivery.people.tokens import TokenFile
from delivery.sync.protocol import ACKNOWLEDGES, BATCH
from tests.delivery.sync_programs import Program, address, files, program, put, server_command, until


class Site:
    """A running server, its folder, and the tokens of two brokers, one of which may mirror all projects."""

    def __init__(self, folder: Path) -> None:
        self.media = folder / "media"
        self.media.mkdir()
        tokens = TokenFile(folder / "tokens.json")
        self.tokens = {"lab": tokens.add("lab", 600), "annex": tokens.add("annex", 600, ["shared", "other"])}
        self.command = server_command(self.media, "--tokens", folder / "tokens.json")

    def start(self, folder: Path) -> Program:
        self.program = Program(*self.command, folder=folder)
        self.api = address(self.program)
        return self.program

    def get(self, path: str, who: str = "lab", **headers: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.tokens.get(who, who)}", **headers}
        return httpx.get(f"{self.api}/{path}", headers=headers, timeout=60)

    def acknowledge(self, path: str, batch: str, content: dict[str, str], who: str = "lab") -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.tokens[who]}"}
        url = f"{self.api}/{path}/batches/{batch}"
        return httpx.put(url, headers=headers, json={"blake3": content}, timeout=60)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    site = Site(folder)
    started = site.start(folder)
    yield site
    started.kill()


def names(answer: httpx.Response) -> list[str]:
    return [name for name in zipfile.ZipFile(BytesIO(answer.content)).namelist() if name != MANIFEST]


def digests(answer: httpx.Response) -> dict[str, str]:
    archive = zipfile.ZipFile(BytesIO(answer.content))
    return {name: blake3(archive.read(name)).hexdigest() for name in names(answer)}


def test_a_batch_is_the_same_until_it_is_acknowledged(site):
    put(site.media / "same" / "bar" / "deep", a=b"a", b=b"b" * 100_000)
    first = site.get("same/h5")
    assert re.fullmatch(r'attachment; filename="h5_2files_\d{8}-\d{6}\.zip"', first.headers["content-disposition"])
    assert first.headers["content-length"] == str(len(first.content))
    put(site.media / "same" / "bar", c=b"c")
    again = site.get("same/h5")
    assert again.content == first.content
    assert again.headers["etag"] == first.headers["etag"]
    part = site.get("same/h5", Range="bytes=1000-", **{"If-Range": first.headers["etag"]})
    assert (part.status_code, part.content) == (206, first.content[1000:])
    for _ in range(2):  # the answer may have been lost
        assert site.acknowledge("same/h5", first.headers[BATCH], digests(first)).status_code == 204
    assert set(files(site.media / "same" / "archive")) == {"deep/a.h5", "deep/b.h5"}
    assert names(site.get("same/h5")) == ["c.h5"]


def test_nothing_new_is_404_and_an_extension_not_offered_406(site):
    put(site.media / "bare" / "bar", a=b"a")
    answers = {path: site.get(path) for path in ("bare/ply", "nobody/h5", "bare/exe", "bare/H5", "bare/h5")}
    assert [answer.status_code for answer in answers.values()] == [404, 404, 406, 406, 200]
    assert "nothing new" in answers["bare/ply"].json()["detail"]
    assert "no project is called 'nobody'" in answers["nobody/h5"].json()["detail"]
    assert "drc, ply, vpcc, gpcc, zip, h5" in answers["bare/exe"].json()["detail"]


@pytest.mark.parametrize(
    "path", ["..%2f..%2fetc/h5", "%2e%2e/h5", ".delivery/h5", "bare%00/h5", "bare/..%2fh5", "%ff/h5"]
)
def test_no_path_leads_out_of_the_folder(site, path):
    (site.media / "bare" / "bar").mkdir(parents=True, exist_ok=True)
    assert site.get(path).status_code in (404, 406)


def test_links_that_lead_out_are_not_followed(site, tmp_path):
    put(tmp_path / "bar", secret=b"secret")
    (site.media / "linked").symlink_to(tmp_path)
    (site.media / "half").mkdir()
    (site.media / "half" / "bar").symlink_to(tmp_path / "bar")
    put(site.media / "whole" / "bar", good=b"good")
    (site.media / "whole" / "bar" / "bad.h5").symlink_to(tmp_path / "bar" / "secret.h5")
    assert [site.get(f"{name}/h5").status_code for name in ("linked", "half")] == [404, 404]
    assert names(site.get("whole/h5")) == ["good.h5"]


def test_an_archive_that_leads_out_keeps_files_where_they_are(site, tmp_path):
    put(site.media / "leaving" / "bar", a=b"a")
    (site.media / "leaving" / "archive").symlink_to(tmp_path)
    answer = site.get("leaving/h5")
    assert site.acknowledge("leaving/h5", answer.headers[BATCH], digests(answer)).status_code == 204
    assert files(tmp_path) == {}
    assert site.get("leaving/h5").status_code == 404
    (site.media / "leaving" / "archive").unlink()
    assert site.get("leaving/h5").status_code == 404
    assert list(files(site.media / "leaving")) == ["archive/a.h5"]


def test_names_that_clash_or_are_no_text_are_not_sent_and_stay(site):
    bar = site.media / "names" / "bar"
    put(bar, Recon=b"1", recon=b"2", good=b"3")
    Path(os.fsdecode(os.fsencode(bar) + b"/latin-\xe9.h5")).write_bytes(b"4")
    answer = site.get("names/h5")
    assert names(answer) == ["good.h5"]
    site.acknowledge("names/h5", answer.headers[BATCH], digests(answer))
    assert len(list(bar.iterdir())) == 3


@pytest.mark.parametrize("token", ["nobody", "wrong wrong", "delivery_" + "A" * 43])
def test_who_has_no_token_of_this_server_gets_nothing(site, token):
    put(site.media / "private" / "bar", a=b"a")
    assert site.get("private/h5", who=token).status_code == 401
    assert httpx.get(f"{site.api}/private/h5").status_code == 401
    assert httpx.put(f"{site.api}/private/h5/batches/any", json={"blake3": {}}).status_code == 401


def test_a_token_is_for_its_projects(site):
    put(site.media / "private" / "bar", a=b"a")
    assert site.get("private/h5", who="annex").status_code == 403


def test_a_file_is_archived_when_all_brokers_have_it(site):
    put(site.media / "shared" / "bar", a=b"a", b=b"b")
    lab = site.get("shared/h5")
    site.acknowledge("shared/h5", lab.headers[BATCH], digests(lab))
    assert set(files(site.media / "shared")) == {"bar/a.h5", "bar/b.h5"}
    assert site.get("shared/h5").status_code == 404
    put(site.media / "shared" / "bar", b=b"another version", c=b"c")
    annex = site.get("shared/h5", who="annex")
    assert names(annex) == ["a.h5", "b.h5", "c.h5"]
    site.acknowledge("shared/h5", annex.headers[BATCH], digests(annex), who="annex")
    assert set(files(site.media / "shared")) == {"archive/a.h5", "bar/b.h5", "bar/c.h5"}
    assert names(site.get("shared/h5")) == ["b.h5", "c.h5"]


def test_nobody_acknowledges_what_another_was_offered(site):
    put(site.media / "other" / "bar", a=b"a")
    batch = site.get("other/h5").headers[BATCH]
    has = {"a.h5": blake3(b"a").hexdigest()}
    assert site.acknowledge("other/h5", batch, has, who="annex").status_code == 404
    assert site.acknowledge("other/h5", "0" * 32, has).status_code == 404
    assert site.acknowledge("other/ply", batch, has).status_code == 404
    assert site.acknowledge("other/h5", batch, has).status_code == 204


@pytest.mark.parametrize("lie", [{}, {"a.h5": "0" * 64}, {"a.h5": blake3(b"a").hexdigest(), "more.h5": "0" * 64}])
def test_a_broker_that_lies_about_its_digests_is_refused_and_nothing_moves(site, lie):
    put(site.media / "lies" / "bar", a=b"a")
    batch = site.get("lies/h5").headers[BATCH]
    answer = site.acknowledge("lies/h5", batch, lie)
    assert answer.status_code == 409
    assert "not what was offered" in answer.json()["detail"]
    assert list(files(site.media / "lies")) == ["bar/a.h5"]
    assert site.get("lies/h5").headers[BATCH] == batch


def test_a_file_that_changes_is_offered_anew(site):
    put(site.media / "anew" / "bar", a=b"first", b=b"b")
    first = site.get("anew/h5")
    put(site.media / "anew" / "bar", a=b"second")
    second = site.get("anew/h5", Range="bytes=10-", **{"If-Range": first.headers["etag"]})
    assert second.status_code == 200
    assert zipfile.ZipFile(BytesIO(second.content)).read("a.h5") == b"second"
    assert site.acknowledge("anew/h5", first.headers[BATCH], digests(first)).status_code == 404


def test_a_file_that_changes_under_way_breaks_the_answer_off(site):
    bar = site.media / "underway" / "bar"
    put(bar, a=bytes(64 << 20))
    right = {"Authorization": f"Bearer {site.tokens['lab']}"}
    with httpx.stream("GET", f"{site.api}/underway/h5", headers=right) as answer:
        with (bar / "a.h5").open("r+b") as file:
            file.write(b"x")
        with pytest.raises(httpx.RemoteProtocolError):
            answer.read()
    assert list(files(bar)) == ["a.h5"]


def test_metrics_tell_what_each_broker_has_got(site):
    bar = site.media / "measured" / "bar"
    put(bar, a=b"a", b=b"b")
    of_lab = {"broker": "lab", "project": "measured", "ext": "h5"}

    def metrics() -> str:
        return httpx.get(f"{site.api.removesuffix('/stream')}/metrics").text

    def told(name: str, **more: str) -> float:
        families = {
            sample.name: sample
            for family in text_string_to_metric_families(metrics())
            for sample in family.samples
            if sample.labels == of_lab | more
        }
        return families[name].value

    began = time.time()
    answer = site.get("measured/h5")
    assert told("delivery_sync_batches", state="offered") == 1
    assert told("delivery_sync_sent_bytes_total") == len(answer.content)
    assert told("delivery_sync_waiting_files") == 2
    site.acknowledge("measured/h5", answer.headers[BATCH], digests(answer))
    put(bar, c=b"c")
    assert told("delivery_sync_batches", state="acknowledged") == 1
    assert told("delivery_sync_waiting_files") == 1
    assert began <= told("delivery_sync_last_contact_timestamp_seconds") <= time.time()
    assert site.get("made-up/h5").status_code == 404
    assert "made-up" not in metrics()


def test_a_broker_that_waits_is_told_at_once(site):
    (site.media / "late" / "bar").mkdir(parents=True)
    answers = []
    waiting = threading.Thread(target=lambda: answers.append(site.get("late/h5", Prefer="respond-async, wait=30")))
    waiting.start()
    put(site.media / "late" / "bar", a=b"a")
    waiting.join()
    assert names(answers[0]) == ["a.h5"]
    assert answers[0].elapsed.total_seconds() < 25


def test_without_acknowledgement_files_leave_with_the_last_byte(tmp_path):
    put(tmp_path / "media" / "head" / "bar", a=b"a" * 1000)
    options = server_command(tmp_path / "media", "--insecure-no-auth", "--no-require-acknowledgement", "--batch", 1500)
    with program(*options, folder=tmp_path) as server:
        url = f"{address(server)}/head/h5"
        httpx.get(url, headers={ACKNOWLEDGES: "yes"})
        httpx.head(url)
        httpx.get(url, headers={"Range": "bytes=5-"})
        put(tmp_path / "media" / "head" / "bar", b=b"b" * 1000, c=b"c" * 1000)
        assert names(httpx.get(url)) == ["a.h5"]  # if that is told by the line's end, it is asked for once more
        until(lambda: names(httpx.get(url)) != ["a.h5"], "offered no more")
        assert "a.h5" in files(tmp_path / "media" / "head" / "archive")


def test_a_disk_that_is_full_loses_nothing(tmp_path):
    """Its database can't grow; its log, which is small, still can."""
    site = Site(tmp_path)
    put(site.media / "head" / "bar", a=b"a")
    started = site.start(tmp_path)

    def full(limit: int) -> None:
        resource.prlimit(started.process.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    try:
        full(16_000)
        answer = site.get("head/h5")
        assert answer.status_code == 503
        assert "try again later" in answer.json()["detail"]
        assert answer.headers["retry-after"] == "10"
        full(resource.RLIM_INFINITY)
        answer = site.get("head/h5")
        assert answer.status_code == 200
        full(16_000)
        assert site.acknowledge("head/h5", answer.headers[BATCH], digests(answer)).status_code == 503
        assert list(files(site.media / "head")) == ["bar/a.h5"]
        full(resource.RLIM_INFINITY)
        assert site.acknowledge("head/h5", answer.headers[BATCH], digests(answer)).status_code == 204
        assert list(files(site.media / "head")) == ["archive/a.h5"]
    finally:
        started.kill()
