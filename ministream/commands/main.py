"""The `ministream` command."""

from ministream.base.cli import new_app

app = new_app("Mini-Stream: live tomography across facilities.")


def main() -> None:
    """Run the command line."""
    app()
