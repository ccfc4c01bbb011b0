"""`delivery token`: makes, lists and revokes the bearer tokens of brokers and operators."""

import time
from pathlib import Path
from typing import Annotated

import typer

from delivery.people.tokens import TokenFile
from delivery.settings import listed
from ministream.base.cli import EXIT_USER_ERROR, new_app
from ministream.base.errors import UserError
from ministream.base.files import whole_or_absent
from ministream.base.units import parse_duration

File = Annotated[Path, typer.Option("--tokens", metavar="FILE", help="File of tokens, as the service knows it.")]
Name = Annotated[str, typer.Argument(help="Name of its bearer, a broker or an operator.", show_default=False)]

_DEFAULT = Path("delivery-tokens.json")

app = new_app("Bearer tokens: of brokers that mirror, and of operators.")


@app.command()
def add(
    name: Name,
    tokens: File = _DEFAULT,
    expires: Annotated[str, typer.Option(help="How long it is good for.")] = "365 days",
    projects: Annotated[str, typer.Option(help="Projects that it is good for, by commas; empty: all.")] = "",
    write: Annotated[Path | None, typer.Option(metavar="FILE", help="Write it there, for --token-file.")] = None,
) -> None:
    """Make a token and print it, once."""
    try:
        token = TokenFile(tokens).add(name, parse_duration(expires), listed(projects))
        if write is None:
            typer.echo(token)
            return
        with whole_or_absent(write, 0o600) as aside:
            aside.write_text(token + "\n")
    except UserError as error:
        _refuse(error)


@app.command()
def revoke(name: Name, tokens: File = _DEFAULT) -> None:
    """Make a token worthless, at once."""
    try:
        TokenFile(tokens).revoke(name)
    except UserError as error:
        _refuse(error)


@app.command("ls")
def list_(tokens: File = _DEFAULT) -> None:
    """List who has a token, for which projects and until when."""
    try:
        for entry in TokenFile(tokens).entries():
            until = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(entry.expires))
            typer.echo(f"{entry.name}\t{until}\t{','.join(entry.projects) or 'all projects'}")
    except UserError as error:
        _refuse(error)


def _refuse(error: UserError) -> None:
    typer.echo(str(error), err=True)
    raise typer.Exit(EXIT_USER_ERROR)
