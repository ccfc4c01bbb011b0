"""Users of another system: from JSON, CSV and a real mongodump's BSON; those with argon2 hashes log in as before."""

import json

import pymongo
import pytest
from pwdlib import PasswordHash
from typer.testing import CliRunner

from delivery.database import open_database
from delivery.main import app
from delivery.people.accounts import Accounts

PASSWORD = "correct horse battery"
BCRYPT = "$2b$12$abcdefghijklmnopqrstuuLJyRM9DmYqQvFaVtdZ9.0kZiHCqiW2G"


@pytest.fixture(scope="module")
def users() -> list[dict[str, str]]:
    argon2 = PasswordHash.recommended().hash(PASSWORD)
    return [
        {"username": "ada", "hashed_password": argon2, "email": "ada@example.org"},
        {"username": "ben", "hashed_password": BCRYPT},
        {"username": "../up", "hashed_password": argon2},
        {"email": "cleo@example.org", "password": argon2},
    ]


@pytest.fixture
def database(tmp_path):
    url = f"sqlite:///{tmp_path}/intake.db"
    engine = open_database(url)
    yield url, Accounts(engine)
    engine.dispose()


def imported(path, url: str):
    return CliRunner().invoke(app, ["users", "import", str(path), "--database", url, "--licence", "1 day"])


def write(path, kind: str, users: list[dict[str, str]]) -> None:
    if kind == "csv":
        fields = ["username", "email", "hashed_password", "password"]
        lines = [",".join(f'"{user.get(field, "")}"' for field in fields) for user in users]
        path.write_text("\n".join([",".join(fields), *lines]))
    else:
        lines = "\n".join(map(json.dumps, users))
        path.write_text(lines if kind == "lines" else json.dumps({"users": users} if kind == "object" else users))


@pytest.mark.parametrize("kind", ["csv", "list", "object", "lines"])
def test_users_are_taken_over(tmp_path, users, database, kind):
    url, accounts = database
    path = tmp_path / ("users.csv" if kind == "csv" else "users.json")
    write(path, kind, users)
    done = imported(path, url)
    assert done.exit_code == 0, done.output
    assert "2 with their passwords, 1 with new ones; 0 were here before" in done.stderr
    assert "refused: '../up'" in done.stderr
    assert [person.name for person in accounts.all()] == ["ada", "ben", "cleo@example.org"]
    assert accounts.is_password("ada", PASSWORD)
    assert accounts.is_password("cleo@example.org", PASSWORD)
    (line,) = done.stdout.splitlines()
    assert accounts.is_password(*line.split("\t"))
    assert not accounts.is_password("ben", PASSWORD)
    assert "3 were here before" in imported(path, url).stderr


def test_a_dump_of_mongodb_is_taken_over(tmp_path, users, database, mongod):
    url, accounts = database
    with pymongo.MongoClient(mongod) as client:
        client["old"]["users"].insert_many([dict(user) for user in users])
        documents = list(client["old"]["users"].find_raw_batches())
    (tmp_path / "users.bson").write_bytes(b"".join(documents))  # as mongodump writes them
    assert imported(tmp_path / "users.bson", url).exit_code == 0
    assert accounts.is_password("ada", PASSWORD)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", b"{"),
        ("a.json", b"[1]"),
        ("a.bson", b"\x10\0\0\0x"),
        ("a.csv", b"\xff\xfe"),
        ("a.txt", b""),
        ("b.json", None),
    ],
)
def test_what_is_no_table_of_users_is_refused_in_words(tmp_path, database, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    done = imported(tmp_path / name, database[0])
    assert done.exit_code == 2
    assert name in done.stderr


def test_a_duration_that_is_none_is_refused(tmp_path, database):
    (tmp_path / "a.json").write_text("[]")
    done = CliRunner().invoke(
        app, ["users", "import", str(tmp_path / "a.json"), "--database", database[0], "--licence", "x"]
    )
    assert done.exit_code == 2
