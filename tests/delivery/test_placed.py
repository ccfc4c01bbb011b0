"""Two sites as real programs: every file ends where the rule says, whatever lies between the sites, and once."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import create_engine, text

from delivery.placed.messages import Have, Offer, encode
from delivery.placed.service import database_url, make_app
from delivery.placed.settings import SiteSettings
from ministream.base.errors import UserError
from tests.delivery.placed_sites import ONES, SITES, TIE, ZEROS, Pair, broker, pair, placed_where_the_rule_says
from tests.delivery.sync_programs import program, until
from tests.ports import some_port

EXPECTED = {"zero": {"z1": 1000, "z2": 1000, "t": 1000}, "one": {"o1": 1000, "o2": 1000, "t": 1000}}


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Iterator[Pair]:
    """Two sites for tests that don't mind what others have uploaded."""
    with pair(tmp_path_factory.mktemp("shared")) as both:
        yield both


together = pytest.mark.xdist_group("placed_shared")


def fill(both: Pair) -> None:
    """Upload files of each kind at each site, and the tie at both."""
    for site, names in {"zero": ("z1", "o1"), "one": ("z2", "o2")}.items():
        for name, content in zip((*names, "t"), (ZEROS, ONES, TIE), strict=True):
            assert both.upload(site, name, content).status_code == 201


def stored(both: Pair, site: str, id_: str) -> Path:
    """Return where a site keeps a file."""
    return both.folder / site / "files" / id_[:2] / id_


@together
def test_a_file_is_had_from_either_site(shared):
    answer = shared.upload("one", "mine", ZEROS)
    assert answer.status_code == 201
    assert "message" in answer.json()
    id_ = answer.json()["id"]
    shared.rest()
    assert shared.ask("one", f"/data/{id_}").json()["state"] == "sent"
    elsewhere = shared.ask("one", f"/data/{id_}/file")
    assert (elsewhere.status_code, elsewhere.headers["location"]) == (307, f"{shared.url('zero')}/data/{id_}/file")
    part = shared.ask("zero", f"/data/{id_}/file", headers={"Range": "bytes=990-"})
    assert (part.status_code, part.content) == (206, ZEROS[990:])
    assert part.headers["content-disposition"] == 'attachment; filename="mine"'


@together
def test_versions_of_a_name_are_kept_and_repetitions_are_one_file(shared):
    ids = {shared.upload(site, "a", content).json()["id"] for site in SITES for content in (ZEROS, ZEROS + b"\0")}
    other = shared.upload("zero", "a", ZEROS, project="scan").json()["id"]
    shared.rest()
    known = shared.ask("zero", "/data").json()["list_metadata"]
    assert {id_: file["size"] for id_, file in known.items() if file["name"] == "a"}.keys() == ids | {other}
    assert len(ids) == 2
    assert "a" not in shared.listed("one")


@together
def test_poison_is_set_aside_seen_and_replayed(shared):
    held = shared.upload("one", "held", ZEROS).json()["id"]
    shared.rest()
    file = next(copy.file for copy in shared.copies("zero") if copy.id == held)
    forged = file.model_copy(update={"id": "0" * 32, "name": "forged"})
    lie = encode(Have(sender="one", id=held))
    for body in (b"rubbish", b"x" * 2000, encode(Offer(sender="one", file=forged)), lie):
        assert shared.ask("zero", "/messages", "POST", who="one", content=body).status_code == 200

    def aside() -> list[dict]:
        return shared.ask("zero", "/set-aside", who="operator").json()

    until(lambda: len(aside()) == 3, "all three are set aside")
    reasons = [message["reason"] for message in aside()]
    assert "2000 bytes are no message" in reasons[1]
    assert "the other site has no such file" in reasons[2]
    assert "delivery_placed_set_aside 3.0" in shared.ask("zero", "/metrics").text
    number = aside()[0]["number"]
    assert shared.ask("zero", f"/set-aside/{number}", "DELETE", who="operator").status_code == 204
    assert shared.ask("zero", f"/set-aside/{number}/replay", "POST", who="operator").status_code == 404
    again = shared.ask("zero", f"/set-aside/{number + 1}/replay", "POST", who="operator")
    assert (again.status_code, again.json()["detail"]) == (409, reasons[1])
    assert [message["number"] for message in aside()] == [number + 1, number + 2]
    assert shared.ask("zero", f"/set-aside/{number + 2}/replay", "POST", who="operator").status_code == 200
    until(lambda: [message["number"] for message in aside()] == [number + 1, number + 3], "it is set aside anew")
    assert "held" in shared.listed("zero")


def test_check_tells_and_repair_mends(tmp_path):
    with pair(tmp_path) as both:
        fill(both)
        both.rest()
        placed_where_the_rule_says(both, EXPECTED)
        for site in SITES:
            both.running[site].wait_for(r"placed at the other site .*name=t\b")
        assert both.check()[0] == 0
        ids = {copy.file.name: copy.id for site in SITES for copy in both.copies(site)}
        stored(both, "zero", ids["t"]).write_bytes(b"damaged")
        extra, unknown = stored(both, "zero", ids["o1"]), stored(both, "zero", "0" * 32)
        for path in (extra, unknown):
            path.parent.mkdir(exist_ok=True)
        shutil.copy(stored(both, "one", ids["o1"]), extra)
        unknown.write_bytes(b"whose?")
        stored(both, "one", ids["o2"]).rename(tmp_path / "lost")
        code, said = both.check()
        assert code == 1
        for words in ("bytes are damaged", "where it does not belong", "no other copy is left", "on record nowhere"):
            assert words in said
        assert both.check(mend=True)[0] == 1
        unknown.unlink()
        (tmp_path / "lost").rename(stored(both, "one", ids["o2"]))
        assert both.check()[0] == 0
        placed_where_the_rule_says(both, EXPECTED)
        both.kill("zero")
        for database in (tmp_path / "zero").glob("site.db*"):
            database.unlink()
        both.start("zero")
        code, said = both.check(mend=True)
        assert code == 1
        assert said.count("on record nowhere") == 2  # of z1 alone, before and after: one never heard of it
        both.upload("zero", "z1", ZEROS)
        assert both.check()[0] == 0
        stray = stored(both, "one", ids["z1"])
        stray.parent.mkdir(exist_ok=True)
        stray.write_bytes(ZEROS)
        code, said = both.check()
        assert (code, said.count("on no record")) == (1, 1)
        both.upload("one", "z1", ZEROS)
        assert both.check()[0] == 0
        placed_where_the_rule_says(both, EXPECTED)


def test_the_last_good_copy_is_never_deleted(tmp_path):
    """What is bad where it belongs is mended by an upload at the other site, whoever is killed meanwhile."""
    with pair(tmp_path) as both:
        fill(both)
        both.rest()
        ids = {copy.file.name: copy.id for site in SITES for copy in both.copies(site)}
        places = {name: stored(both, "one", ids[name]) for name in ("o1", "o2", "t")}
        for name, content in {"o1": ONES, "t": TIE}.items():
            places[name].write_bytes(b"?" + content[1:])  # as long as it was
        places["o2"].unlink()
        both.kill("one")
        for name, content in {"o1": ONES, "o2": ONES, "t": TIE}.items():
            assert both.upload("zero", name, content).status_code == 201
        both.kill("zero")
        both.start()
        lie = encode(Have(sender="one", id=ids["o1"]))
        assert both.ask("zero", "/messages", "POST", who="one", content=lie).status_code == 200
        until(lambda: places["t"].read_bytes() == TIE, "the tie is whole at both sites")
        both.rest()
        placed_where_the_rule_says(both, EXPECTED)
        assert both.check()[0] == 0


def test_a_users_rule_decides_and_sites_whose_rules_differ_say_so(tmp_path):
    rule = "--rule", "tests.delivery.test_placed_rules:by_content"
    with pair(tmp_path, *rule, of={"one": ["--tie", "one"]}) as both:
        both.upload("zero", "z", b"zzz")
        both.upload("one", "a", b"aaa")
        both.rest()
        placed_where_the_rule_says(both, {"zero": {"z": 3}, "one": {"a": 3}})
        both.running["zero"].wait_for("rules differ")


KINDS = [
    "kafka",
    pytest.param("redis", marks=pytest.mark.needs("redis-server")),
    pytest.param("nats", marks=pytest.mark.needs("nats-server")),
]


@pytest.mark.parametrize("kind", KINDS)
def test_uploads_go_on_while_the_broker_is_down_and_placement_catches_up(tmp_path, kind):
    with broker(kind, tmp_path) as between, pair(tmp_path, "--broker", between.url) as both:
        for site in SITES:
            both.running[site].wait_for("messages go")
        assert both.upload("one", "z0", ZEROS).status_code == 201
        both.rest()
        between.kill()
        fill(both)
        assert both.ask("one", "/copies", who="operator").text.count('"leaving"') == 1
        between.start()
        both.rest()
        placed_where_the_rule_says(both, {**EXPECTED, "zero": {**EXPECTED["zero"], "z0": 1000}})


def test_each_site_has_a_postgresql_database_and_one_that_was_down_catches_up(tmp_path, postgres):
    environment = {"PGHOST": postgres.partition("?host=")[2]}
    for site in SITES:
        name = f"placed_{site}_{os.urandom(3).hex()}"
        engine = create_engine(postgres.replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        engine.dispose()
        parts = {"DRIVER": "postgresql+asyncpg", "USER": "tester", "DB_NAME": name}
        environment |= {f"{site.upper()}_{key}": value for key, value in parts.items()}
    with pair(tmp_path, environment=environment) as both:
        both.kill("zero")
        uploaded = both.upload("one", "z0", ZEROS)
        assert uploaded.status_code == 201
        lie = encode(Have(sender="zero", id=uploaded.json()["id"]))  # one asks zero before it deletes anything
        assert both.ask("one", "/messages", "POST", who="zero", content=lie).status_code == 200
        both.kill("one")
        both.start()
        fill(both)
        both.rest()
        placed_where_the_rule_says(both, {**EXPECTED, "zero": {**EXPECTED["zero"], "z0": 1000}})
    assert not list(tmp_path.rglob("*.db"))


def test_both_sites_run_by_one_command(tmp_path):
    ports = dict(zip(SITES, range(first := some_port(2), first + 2), strict=True))
    options = [f"--{site}-port={port}" for site, port in ports.items()]
    up = ["-m", "delivery", "placed", "up", "--datadir", tmp_path / "placed", *options]
    with program(*up, "--insecure-no-auth", folder=tmp_path) as both:
        both.wait_for("(serving(?s:.*)){2}")
        url = f"http://127.0.0.1:{ports['one']}"
        assert httpx.post(f"{url}/data/upload", files={"file": ("z", ZEROS)}).status_code == 201
        zero = f"http://127.0.0.1:{ports['zero']}/data"
        until(lambda: httpx.get(zero).json()["total_size"] == 1000, "placed at zero")
        assert httpx.get(f"{url}/copies").status_code == 401
        assert both.stop() == 130


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"site": "two"}, "command line: site"),
        ({"rule": "no_such"}, "no rule is called"),
        ({"rule": "size:much"}, "size:much"),
        ({"tokens": "absent"}, "delivery token add"),
        ({"broker": "amqp://x"}, "no broker of the kind"),
        ({"peer": "one:8080"}, "give a URL"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_start(tmp_path, options, words):
    (tmp_path / "tokens").touch(mode=0o600)
    fixed = {"site": "one", "datadir": tmp_path / "one", "tokens": tmp_path / "tokens"}
    with pytest.raises(UserError, match=words):
        make_app(SiteSettings.load("delivery_placed_site", overrides=fixed | options))


def test_a_broker_and_a_database_are_named_by_the_environment():
    settings = SiteSettings.load("delivery_placed_site", environment={"SITE": "zero", "KAFKA_PORT": "9092"})
    assert settings.broker_url == "kafka://localhost:9092"
    parts = {"DRIVER": "postgresql", "USER": "me", "PASSWORD": "p@ss", "HOST": "db", "PORT": "5432", "DB_NAME": "d"}
    environment = {f"ONE_{key}": value for key, value in parts.items()}
    assert database_url("one", Path(), environment) == "postgresql://me:p%40ss@db:5432/d"
    assert database_url("zero", Path("/x"), environment) == "sqlite:////x/site.db"
    with pytest.raises(UserError, match="ONE_PORT"):
        database_url("one", Path(), environment | {"ONE_PORT": "x"})
