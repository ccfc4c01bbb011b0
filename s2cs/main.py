"""The `s2cs` command."""

from ministream.base.cli import new_app
from s2cs.commands_site import add_site_commands

app = new_app("SciStream control server: opens tunnels through a gateway for users who may have them.")
add_site_commands(app)


def main() -> None:
    """Run the command line."""
    app()
