"""The commands of a site's operator: `s2cs init` and `s2cs token`.

A token goes to standard output and nothing else does, for `TOKEN=$(s2cs token add anna)`; what is said to a
person goes to standard error.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import gethostname
from typing import Annotated

import typer

from ministream.base import log
from ministream.base.cli import EXIT_USER_ERROR, new_app
from ministream.base.errors import UserError
from ministream.base.units import parse_duration
from s2cs.auth.tokens import TokenFile

SITE = "s2cs-site"

Folder = Annotated[Path, typer.Option("--folder", metavar="FOLDER", help="Private folder of the site.")]
Expires = Annotated[str, typer.Option("--expires", metavar="TIME", help="How long the token is good for.")]
Name = Annotated[str, typer.Argument(help="Who the token is for: the subject that policy rules name.")]

token_app = new_app("Local tokens: who may ask this site's control server.")


def add_site_commands(app: typer.Typer) -> None:
    """Add `init` and `token` to `app`."""
    app.command("init")(init)
    app.add_typer(token_app, name="token")


def init(
    names: Annotated[list[str] | None, typer.Argument(help="Host names and IP addresses of the gateway.")] = None,
    folder: Folder = Path(SITE),
    user: Annotated[str, typer.Option("--user", help="Who the first token is for.")] = "first",
    expires: Expires = "30 days",
    renew: Annotated[bool, typer.Option("--renew", help="Renew the server's certificate only.")] = False,
) -> None:
    """Make a site: its CA, the server's certificate and the first token (or renew the certificate)."""
    from s2cs.site import init_site, renew_site, server_names  # cryptography is slow to load

    with _told_in_one_line():
        if renew:
            site, token = renew_site(folder, names or ()), None
        else:
            site, token = init_site(folder, names or [gethostname()], user=user, lifetime=parse_duration(expires))
        _say(f"certificate  {site.certificate} for {', '.join(server_names(site))}")
        if token is None:
            _say("a running server shows the new certificate to every new connection; clients change nothing")
            return
        _say(f"CA           {site.ca} (give every client a copy; SciStream's call it server.crt)")
        _say(f"token        of {user}, good for {expires}; it is shown this once:")
        typer.echo(token)
        _say(f"serve with   s2cs --server-crt {site.certificate} --server-key {site.key} --tokens {site.tokens}")


@token_app.command()
def add(name: Name, expires: Expires = "30 days", folder: Folder = Path(SITE)) -> None:
    """Make a token and print it, this once."""
    with _told_in_one_line():
        typer.echo(_tokens(folder).add(name, parse_duration(expires)))


@token_app.command()
def revoke(name: Name, folder: Folder = Path(SITE)) -> None:
    """Make a token worthless from now on, in a running server, too."""
    with _told_in_one_line():
        _tokens(folder).revoke(name)


@token_app.command("list")
def list_tokens(folder: Folder = Path(SITE)) -> None:
    """Say who has a token, and until when."""
    with _told_in_one_line():
        for entry in sorted(_tokens(folder).entries(), key=lambda entry: entry.name):
            until = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(entry.expires))
            typer.echo(f"{entry.name:<24} {'expired' if entry.expires <= time.time() else 'until  '} {until}")


def _tokens(folder: Path) -> TokenFile:
    return TokenFile(folder / "tokens.json")


def _say(text: str) -> None:
    typer.echo(text, err=True)


@contextmanager
def _told_in_one_line() -> Iterator[None]:
    """Make one line and exit code 2 of what the user can mend."""
    log.configure("s2cs", stream=sys.stderr)
    try:
        yield
    except UserError as error:
        log.get_logger().error(str(error))
        raise typer.Exit(EXIT_USER_ERROR) from error
