"""Users of another system: from JSON, CSV, or a mongodump (BSON) of its user table.

Names come from `username`, `name`, `user` or `email`; hashes of passwords from `password`, `hashed_password` or
`password_hash`. Argon2 hashes are taken as they are, so that their owners log in as before. Others prove nothing here:
such accounts get a new password, which is told once. Whatever else a table holds is left out.
"""

import csv
import json
import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from delivery.people.accounts import NAME, Accounts, NameTaken
from ministream.base.errors import UserError

NAMES = ("username", "name", "user", "email")
HASHES = ("password", "hashed_password", "password_hash")
ARGON2 = "$argon2"


class Outcome(NamedTuple):
    """Names by what became of them; and the new passwords of those whose old ones prove nothing here."""

    made: list[str]
    passwords: dict[str, str]
    known_before: list[str]
    refused: list[str]


def import_users(accounts: Accounts, path: Path, *, licence: float, quota: int) -> Outcome:
    """Make an account for each user in a file that has none yet.

    Parameters
    ----------
    accounts
        Where to.
    path
        The file: .json, .csv or .bson.
    licence, quota
        Seconds of licence from now on, and bytes a day, of each.

    Raises
    ------
    UserError
        If the file can't be read as what its name says.
    """
    outcome = Outcome([], {}, [], [])
    for row in _rows(path):
        name, given = _text(row, NAMES), _text(row, HASHES)
        if not re.fullmatch(NAME, name):
            outcome.refused.append(name[:64])
            continue
        try:
            if given.startswith(ARGON2):
                accounts.take_over(name, given, licence=licence, quota=quota)
                outcome.made.append(name)
            else:
                password = secrets.token_urlsafe(12)
                accounts.register(name, password, licence=licence, quota=quota)
                outcome.passwords[name] = password
        except NameTaken:
            outcome.known_before.append(name)
    return outcome


def _text(row: Mapping[str, Any], fields: tuple[str, ...]) -> str:
    return next((str(row[field]).strip() for field in fields if row.get(field)), "")


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    readers = {".json": _json, ".csv": _csv, ".bson": _bson}
    if path.suffix not in readers:
        raise UserError(f"{path}: give a file that ends in .json, .csv or .bson")
    try:
        yield from readers[path.suffix](path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except ModuleNotFoundError as error:
        raise UserError("BSON needs pymongo: pip install 'mini-stream[delivery-stores]'") from error
    except (ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path} can't be read as {path.suffix[1:].upper()}: {error}") from error


def _json(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the objects of a list, also of one within an object; or of a line each, as mongoexport writes them."""
    text = path.read_text()
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        found = [json.loads(line) for line in text.splitlines() if line.strip()]
    if isinstance(found, dict):
        found = next((value for value in found.values() if isinstance(value, list)), [found])
    for row in found:
        if not isinstance(row, dict):
            raise TypeError("there must be a list of objects, one for each user")
        yield row


def _csv(path: Path) -> Iterator[Mapping[str, Any]]:
    with path.open(newline="") as file:
        yield from csv.DictReader(file)


def _bson(path: Path) -> Iterator[Mapping[str, Any]]:
    import bson
    from bson.errors import BSONError

    with path.open("rb") as file:
        try:
            yield from bson.decode_file_iter(file)
        except BSONError as error:
            raise ValueError(str(error)) from error
