"""Tickets whose artefacts lie in S3, as SeaweedFS serves it."""

import hashlib

import pytest

from delivery.stores import PART, Store, StoreFailed
from tests.delivery.sync_programs import until
from tests.delivery.ticket_service import contents, sql, ticket_service

PLACE = "s3://artefacts/of-tickets"


@pytest.mark.usefixtures("seaweed")
def test_results_are_kept_in_s3_fetched_in_ranges_and_deleted_there(tmp_path):
    with ticket_service(tmp_path, "--store", PLACE, "--attic", tmp_path / "attic") as service:
        store = Store(PLACE)
        files = {"a.h5": service.write("a.h5", PART + 1000), "b.h5": service.write("b.h5", 10)}
        kept, moved = (service.ask("*.h5", keep="1 hour", then=then) for then in ("delete", "move"))
        volume = service.until(kept, "ready")["volumes"][0]
        whole = service.fetch(kept)
        assert contents(whole.content) == files
        assert hashlib.sha256(whole.content).hexdigest() == volume["sha256"]
        part = service.fetch(kept, headers={"Range": f"bytes={PART - 5}-", "If-Range": volume["etag"]})
        assert (part.status_code, part.content) == (206, whole.content[PART - 5 :])
        service.until(moved, "ready")
        assert len(store.keys()) == 2
        service.kill()
        service.start()
        assert service.fetch(kept).content == whole.content
        for ticket in (kept, moved):
            sql(service, "UPDATE tickets SET expires = 1 WHERE id = ?", ticket)
            service.until(ticket, "expired")
        until(lambda: not store.keys(), "the artefacts to be deleted")
        assert service.fetch(kept).status_code == 410
        assert [path.read_bytes() for path in (tmp_path / "attic").rglob("*.zip")] == [whole.content]


@pytest.mark.usefixtures("seaweed")
def test_what_a_store_has_lost_is_prepared_anew(tmp_path):
    with ticket_service(tmp_path, "--store", f"{PLACE}-lost") as service:
        content = service.write("a.h5", 1000)
        ticket = service.ask("a.h5")
        service.until(ticket, "ready")
        store = Store(f"{PLACE}-lost")
        (key,) = store.keys()
        store.delete(key)
        assert service.fetch(ticket).status_code == 409
        service.until(ticket, "ready")
        assert contents(service.fetch(ticket).content) == {"a.h5": content}
        service.operator.delete(f"/ticket/{ticket}")
        until(lambda: not store.keys(), "the artefact to be deleted")


def test_a_store_that_is_down_is_said_to_be(monkeypatch):
    for name, value in {"AWS_ENDPOINT": "http://127.0.0.1:1", "AWS_ALLOW_HTTP": "true"}.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")
    with pytest.raises(StoreFailed, match=PLACE):
        Store(PLACE).keys()
