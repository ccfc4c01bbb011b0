"""`python -m receiver` is the receiver service."""

from ministream.base.cli import add_program, new_app
from receiver.settings import ReceiverSettings


def _serve(settings: ReceiverSettings) -> int:
    from receiver.program import main

    return main(settings)


app = new_app("Receiver: reconstructs the scans that it is handed.")
add_program(app, "receiver", ReceiverSettings, _serve)

if __name__ == "__main__":
    app()
