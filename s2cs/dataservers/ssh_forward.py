"""The outbound side of the `ssh` kind, a program of its own: `python -m s2cs.dataservers.ssh_forward CONFIG`.

Each listener has an SSH connection of its own to its counterpart at the inbound gateway, made when the first
connection comes and again after it broke. Through it, every connection to the listener becomes a channel to the
target, which the inbound gateway names once we have proved who we are.
"""

import json
import socket
import sys
import threading
from pathlib import Path

from s2cs.addresses import parse_address


def main(config: Path) -> None:
    """Listen and forward until a signal ends the process."""
    settings = json.loads(config.read_text())
    pairs = [(parse_address(listen), parse_address(inbound)) for listen, inbound in settings["pairs"]]
    listeners = [
        socket.create_server(
            (listen.host, listen.port), family=socket.AF_INET6 if ":" in listen.host else socket.AF_INET, backlog=128
        )
        for listen, _ in pairs
    ]
    # paramiko takes half a second to load: the listeners stand before, and connections wait that long
    from ministream.base import log
    from s2cs.dataservers.ssh_channel import Gateway, serve

    log.configure("ssh")
    key, peer = Path(settings["key"]), Path(settings["peer_certificate"])
    servers = [
        threading.Thread(target=serve, args=(listener, Gateway(inbound, index, key, peer)), daemon=True)
        for index, (listener, (_, inbound)) in enumerate(zip(listeners, pairs, strict=True))
    ]
    for server in servers:
        server.start()
    for server in servers:
        server.join()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
