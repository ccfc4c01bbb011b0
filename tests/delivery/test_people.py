"""Accounts, logins, roles, licences and quotas, at a real service and, for what takes time, below it."""

import jwt
import pytest
from sqlalchemy import create_engine

from delivery.database import open_database
from delivery.people.accounts import GUESSES, PAUSE, Accounts, TooManyGuesses
from delivery.people.logins import ACCESS, Logins
from delivery.upload.ledger import LOGIN_REFUSED, Ledger
from tests.delivery.sync_programs import until
from tests.delivery.ticket_service import PASSWORD, accepted, sql, ticket_service


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    options = "--licence", "1 day", "--quota", "10kB", "--most-waiting", 1, "--space", "100kB"
    with ticket_service(tmp_path_factory.mktemp("people"), *options) as running:
        running.write("scan.h5", 4000)
        yield running


@pytest.fixture(scope="module")
def ada(service):
    credentials = {"name": "ada", "password": PASSWORD}
    stranger = service.client()
    assert stranger.post("/register", json=credentials).status_code == 201
    assert stranger.post("/register", json=credentials).status_code == 409
    return service.client(stranger.post("/login", json=credentials).raise_for_status().json()["access_token"])


def test_without_a_login_nothing_is_served(service):
    stranger = service.client()
    for method, path in [("POST", "/download"), ("GET", "/tickets"), ("GET", "/people"), ("GET", "/ticket/x/status")]:
        answer = stranger.request(method, path, json={"paths": ["scan.h5"]} if method == "POST" else None)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert service.client("foreign").get("/me").status_code == 401


def test_tickets_are_their_owners_and_the_operators(service, ada):
    mine = accepted(ada.post("/download", json={"paths": ["scan.h5"]}))
    operators = service.ask("scan.h5")
    assert [ticket["ticketId"] for ticket in ada.get("/tickets").json()] == [mine]
    assert ada.get(f"/ticket/{operators}/status").status_code == 404
    assert ada.delete(f"/ticket/{operators}").status_code == 404
    assert service.status(mine)["owner"] == "ada"
    assert service.status(operators)["state"] != "cancelled"


def test_users_delete_no_stored_files_and_grant_nothing(ada):
    assert ada.post("/deletion", json={"paths": ["scan.h5"]}).status_code == 403
    assert ada.patch("/people/ada", json={"role": "operator"}).status_code == 403


def test_a_quota_is_refused_with_what_is_left_of_it(service, ada):
    until(lambda: all(status["state"] != "waiting" for status in ada.get("/tickets").json()), "earlier tickets")
    service.until(accepted(ada.post("/download", json={"paths": ["scan.h5"]})), "ready")
    service.write("much.h5", 9000)
    refused = ada.post("/download", json={"paths": ["much.h5"]})
    assert refused.status_code == 429
    assert "of today's quota of 10000 for ada" in refused.json()["detail"]
    service.operator.patch("/people/ada", json={"quota": "1MB"}).raise_for_status()
    accepted(ada.post("/download", json={"paths": ["much.h5"]}))


def test_a_licence_ends_with_402_and_the_reason(service, ada):
    until(lambda: all(status["state"] != "waiting" for status in ada.get("/tickets").json()), "earlier tickets")
    ticket = accepted(ada.post("/download", json={"paths": ["scan.h5"]}))
    service.until(ticket, "ready")
    service.operator.patch("/people/ada", json={"licence": 0}).raise_for_status()
    for answer in (ada.post("/download", json={"paths": ["scan.h5"]}), ada.get(f"/ticket/{ticket}/result")):
        assert answer.status_code == 402
        assert "the licence of ada ended on " in answer.json()["detail"]
    service.operator.patch("/people/ada", json={"licence": "300 days"}).raise_for_status()
    assert ada.get(f"/ticket/{ticket}/result").status_code == 200


def test_an_operator_is_made_by_operators(service, ada):
    assert service.operator.patch("/people/ada", json={"role": "operator"}).json()["role"] == "operator"
    assert [person["name"] for person in ada.get("/people").json()] == ["ada"]
    service.operator.patch("/people/ada", json={"role": "user"})
    assert service.operator.patch("/people/nobody", json={"role": "user"}).status_code == 404


def test_a_logout_counts_at_once_and_guessing_is_stopped(service, ada):
    stranger = service.client()
    tokens = stranger.post("/login", json={"name": "ada", "password": PASSWORD}).json()
    second = service.client(tokens["access_token"])
    assert second.get("/me").json()["name"] == "ada"
    assert second.post("/logout").status_code == 204
    assert second.get("/me").status_code == 401
    assert stranger.post("/login/refresh", json={"token": tokens["refresh_token"]}).status_code == 401
    assert ada.get("/me").status_code == 200
    guess = {"name": "eve-the-guesser", "password": "0123456789"}
    answers = [stranger.post("/login", json=guess).status_code for _ in range(6)]
    assert answers == [401] * 5 + [429]
    assert "eve-the-guesser" not in service.process.said()
    assert tokens["access_token"] not in service.process.said()


def test_short_passwords_of_another_system_log_in_and_are_given_to_nobody(tmp_path, database_url):
    engine = open_database(database_url)
    Accounts(engine).register("ben", "short", licence=1.0, quota=1)
    engine.dispose()
    with ticket_service(tmp_path, database=database_url) as service:
        stranger = service.client()
        assert stranger.post("/login", json={"name": "ben", "password": "short"}).status_code == 200
        assert stranger.post("/register", json={"name": "bob", "password": "short"}).status_code == 422
        odd = stranger.get("/ticket/%00/result?until=1&signature=x")  # of which PostgreSQL takes no name
        assert odd.status_code in (400, 403), odd.text


def test_registration_can_be_closed_and_everybody_be_served(tmp_path):
    with ticket_service(tmp_path, "--no-registration", "--insecure-no-auth") as service:
        service.write("a.h5", 10)
        stranger = service.client()
        assert stranger.post("/register", json={"name": "bob", "password": PASSWORD}).status_code == 403
        ticket = accepted(stranger.post("/download", json={"paths": "a.h5"}))
        until(lambda: stranger.get(f"/ticket/{ticket}/result").status_code == 200, "the result")
        assert stranger.post("/deletion", json={"paths": ["a.h5"]}).status_code == 403
        sql(service, "UPDATE tickets SET owner = 'ada'")
        assert stranger.get(f"/ticket/{ticket}/status").status_code == 404


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def engine(tmp_path):
    engine = open_database(f"sqlite:///{tmp_path}/people.db")
    yield engine
    engine.dispose()


@pytest.fixture
def logins(engine, clock):
    return Logins(engine, 1000.0, clock)


def test_wrong_names_are_forgotten(engine, clock):
    accounts = Accounts(engine, clock)
    for number in range(5):
        assert not accounts.is_password(f"nobody{number}", PASSWORD)
    clock.now += PAUSE
    for _ in range(GUESSES):
        assert not accounts.is_password("eve", PASSWORD)
    with pytest.raises(TooManyGuesses):
        accounts.is_password("eve", PASSWORD)
    assert set(accounts._guesses._wrong) == {"eve"}


def test_the_audit_trail_keeps_the_latest_refused_logins(engine):
    ledger = Ledger(engine, 1000.0)
    for number in range(4):
        ledger.note(f"eve{number}", LOGIN_REFUSED)
        ledger.note("ada", "login")
    for _ in range(2):
        ledger.forget_refused_logins(most=2)
        assert [line["who"] for line in ledger.trail(0, 100) if line["action"] == LOGIN_REFUSED] == ["eve2", "eve3"]
        assert len(ledger.trail(0, 100)) == 6


def test_refresh_tokens_rotate_and_one_used_twice_ends_the_login(logins):
    first = logins.begin("ada")
    second = logins.refresh(first.refresh)
    assert second.refresh != first.refresh
    assert logins.bearer(second.access) == "ada"
    assert logins.refresh(first.refresh) is None  # copied by somebody
    assert logins.refresh(second.refresh) is None
    assert logins.bearer(second.access) is None


def test_tokens_grow_old(logins, clock):
    tokens = logins.begin("ada")
    clock.now += ACCESS
    assert logins.bearer(tokens.access) is None
    assert (tokens := logins.refresh(tokens.refresh)) is not None
    clock.now += 1000
    assert logins.refresh(tokens.refresh) is None


def test_tokens_that_others_signed_are_nobodys(logins, tmp_path):
    real = jwt.decode(logins.begin("ada").access, options={"verify_signature": False})
    for key, algorithm in [(b"another key of thirty-two bytes!!", "HS256"), (None, "none")]:
        assert logins.bearer(jwt.encode(real, key, algorithm)) is None
    for wrong in ("", "a.b.c", "x" * 5000):
        assert logins.bearer(wrong) is None
        assert logins.refresh(wrong) is None
    engine = create_engine(f"sqlite:///{tmp_path}/people.db")
    with engine.connect() as connection:
        stored = connection.exec_driver_sql("SELECT * FROM logins").all()
    engine.dispose()
    assert len(stored[0].refresh) == 64  # a hash, not the token
