"""The `delivery` command: each program's options come from its settings, its code is loaded when it runs."""

import importlib
from collections.abc import Callable
from typing import Any

from delivery.people.commands import app as token_app
from delivery.people.user_commands import app as users_app
from delivery.placed.settings import CheckSettings, RepairSettings, SiteSettings, UpSettings
from delivery.sync.settings import BrokerSettings, ServerSettings
from delivery.tickets.settings import DownloadSettings, TicketSettings
from delivery.upload.settings import IntakeSettings, UploadSettings
from ministream.base.cli import add_program, new_app
from ministream.base.errors import UserError

app = new_app("Delivery: finished files leave, by mirrors that sync themselves or by ticket.")


def _late(module: str) -> Callable[[Any], int]:
    """Return the `main` of `module`, imported only when it is called: `--help` stays quick."""

    def run(settings: Any) -> int:
        try:
            program = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("delivery"):
                raise
            raise UserError(f"{error.name} is not installed: pip install 'mini-stream[delivery]'") from error
        return int(program.main(settings))

    return run


add_program(app, "server", ServerSettings, _late("delivery.sync.server"), section="delivery_server")
add_program(app, "broker", BrokerSettings, _late("delivery.sync.broker"), section="delivery_broker")
add_program(app, "tickets", TicketSettings, _late("delivery.tickets.service"), section="delivery_tickets")
add_program(
    app,
    "download",
    DownloadSettings,
    _late("delivery.client"),
    section="delivery_download",
    arguments={"paths": "Paths, folders (which end in a slash) or patterns of files."},
)
placed = new_app("Placed storage: two sites, and a rule that says at which of them a file lives.")
add_program(placed, "up", UpSettings, _late("delivery.placed.both"), section="delivery_placed_up")
add_program(placed, "site", SiteSettings, _late("delivery.placed.service"), section="delivery_placed_site")
add_program(placed, "check", CheckSettings, _late("delivery.placed.check"), section="delivery_placed_check")
add_program(placed, "repair", RepairSettings, _late("delivery.placed.repair"), section="delivery_placed_repair")
app.add_typer(placed, name="placed")
add_program(app, "intake", IntakeSettings, _late("delivery.upload.service"), section="delivery_intake")
add_program(
    app,
    "upload",
    UploadSettings,
    _late("delivery.upload.client"),
    section="delivery_upload",
    arguments={"files": "Files, or folders of them."},
)
app.add_typer(token_app, name="token")
app.add_typer(users_app, name="users")


def main() -> None:
    """Run the command line."""
    app()
