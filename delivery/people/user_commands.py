"""`delivery users`: takes the users of another system over."""

from pathlib import Path
from typing import Annotated

import typer

from ministream.base.cli import EXIT_USER_ERROR, new_app
from ministream.base.errors import UserError
from ministream.base.units import Size, parse_duration

app = new_app("Accounts of people.")


@app.callback()
def _users() -> None:
    """Accounts of people."""


@app.command("import")
def import_(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="Users: .json, .csv, or .bson of a mongodump.")],
    database: Annotated[str, typer.Option(help="Database of the service.")] = "sqlite:///intake.db",
    licence: Annotated[str, typer.Option(help="Licence of each, from now on.")] = "365 days",
    quota: Annotated[str, typer.Option(help="Bytes that each may send a day.")] = "1TB",
) -> None:
    """Make accounts for users of another system; prints the new passwords of those whose old ones can't be used."""
    try:
        _import(path, database, licence, quota)
    except UserError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(EXIT_USER_ERROR) from error


def _import(path: Path, database: str, licence: str, quota: str) -> None:
    from pydantic import TypeAdapter

    from delivery.database import open_database
    from delivery.people.accounts import Accounts
    from delivery.people.importing import import_users

    engine = open_database(database)
    try:
        size = TypeAdapter(Size).validate_python(quota)
        outcome = import_users(Accounts(engine), path, licence=parse_duration(licence), quota=size)
    finally:
        engine.dispose()
    for name, password in outcome.passwords.items():
        typer.echo(f"{name}\t{password}")
    counted = f"{len(outcome.made)} with their passwords, {len(outcome.passwords)} with new ones"
    typer.echo(f"{counted}; {len(outcome.known_before)} were here before", err=True)
    for name in outcome.refused:
        typer.echo(f"refused: {name!a} is no name of letters, digits and . _ @ -", err=True)
