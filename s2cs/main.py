"""The `s2cs` command: serves, unless it is given the name of another command."""

import sys

from ministream.base.cli import add_program, new_app
from s2cs.commands_site import add_site_commands
from s2cs.settings import ServerSettings

SERVE = "serve"


def _serve(settings: ServerSettings) -> int:
    from s2cs.server import main as serve  # what the other commands need not load

    return serve(settings)


app = new_app("SciStream control server: opens tunnels through a gateway for users who may have them.")
add_program(app, SERVE, ServerSettings, _serve, section="s2cs")
add_site_commands(app)


def main() -> None:
    """Run the command line; options without a command, SciStream's way, are those of `serve`."""
    first = sys.argv[1] if len(sys.argv) > 1 else ""
    if not first or (first.startswith("-") and first not in ("-h", "--help")):
        sys.argv.insert(1, SERVE)
    app()
