"""The `ministream` command: each program's options come from its settings, its code is loaded when it runs."""

import importlib
from collections.abc import Callable
from typing import Any

import typer

from aps_mini_apps.daq.settings import DaqSettings
from aps_mini_apps.dist.settings import DistSettings
from aps_mini_apps.quality.settings import QualitySettings
from aps_mini_apps.sirt.settings import SirtSettings
from ministream.base.cli import add_program, new_app
from ministream.commands.settings import ClientSettings, RunSettings
from producer.settings import ProducerSettings
from receiver.settings import ReceiverSettings, WorkerSettings

app = new_app("Mini-Stream: live tomography across facilities.")


def _late(module: str) -> Callable[[Any], int]:
    """Return the `main` of `module`, imported only when it is called: `--help` stays quick."""
    return lambda settings: int(importlib.import_module(module).main(settings))


add_program(
    app,
    "run",
    RunSettings,
    _late("ministream.commands.run"),
    arguments={"file": "DXchange HDF5 file; without one, a phantom is scanned."},
)
add_program(app, "daq", DaqSettings, _late("aps_mini_apps.daq.program"))
add_program(app, "dist", DistSettings, _late("aps_mini_apps.dist.program"))
add_program(app, "sirt", SirtSettings, _late("aps_mini_apps.sirt.program"))
add_program(app, "producer", ProducerSettings, _late("producer.program"))
add_program(
    app,
    "quality",
    QualitySettings,
    _late("aps_mini_apps.quality.program"),
    arguments={"image": "Reconstruction to judge.", "reference": "What to compare it with."},
)
add_program(app, "receiver", ReceiverSettings, _late("receiver.program"))
add_program(app, "worker", WorkerSettings, _late("receiver.worker"))
add_program(app, "client", ClientSettings, _late("ministream.commands.client"))


@app.command("algorithms")
def list_algorithms() -> None:
    """List the algorithms of `ministream sirt --algorithm`, those of other installed packages included."""
    catalogue = importlib.import_module("aps_mini_apps.sirt.algorithms.catalogue")
    for name in catalogue.names():
        try:
            settings, text = catalogue.describe(name)
        except ValueError as error:
            settings, text = "", f"broken: {error}"
        typer.echo(f"{name:<10} {text}")
        if settings:
            typer.echo(f"{'':<10} {settings}")


def main() -> None:
    """Run the command line."""
    app()
