"""`delivery placed up`: both sites on one machine, each a process of its own, with tokens made for them.

Without a broker, the sites hand each other their messages by HTTP. FastStream's in-memory broker lives within one
process and is meant for tests; the sites' outboxes are durable queues already, and a second process to relay them
would add something that can be down.
"""

from pathlib import Path

from delivery.people.tokens import TokenFile
from delivery.placed.rules import Site
from delivery.placed.settings import UpSettings
from ministream.base import log
from ministream.base.children import Children, command_line
from ministream.base.files import explained, whole_or_absent
from ministream.base.lifecycle import StopFlag

LIFETIME = 10 * 365 * 86400.0
"""Seconds that the sites' own tokens are good for."""


def main(settings: UpSettings) -> int:
    """Run both sites until SIGINT or SIGTERM, or until one of them fails."""
    keys = settings.datadir / "keys"
    with explained(keys):
        keys.mkdir(parents=True, mode=0o700, exist_ok=True)
    for name in (*Site, "operator"):
        _make_token(keys, name)
    stop = StopFlag().install()
    with Children(stop, log.repeat) as children:
        for site in Site:
            children.start(site, "delivery", ["placed", "site", *_options(settings, site)])
        for _ in children.follow():
            pass
    return 0


def _make_token(keys: Path, name: str) -> None:
    """Make a token and put it where its bearer finds it, unless it is there; a kill in between is mended."""
    place, tokens = keys / name, TokenFile(keys / "tokens.json")
    if place.exists():
        return
    if any(entry.name == name for entry in tokens.entries()):
        tokens.revoke(name)
    token = tokens.add(name, LIFETIME)
    with whole_or_absent(place, 0o600) as aside:
        aside.write_text(token + "\n")


def _options(settings: UpSettings, site: Site) -> list[str]:
    ports = {Site.ZERO: settings.zero_port, Site.ONE: settings.one_port}
    address = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104 - to ask, not to bind
    options = {
        "site": site,
        "host": settings.host,
        "port": ports[site],
        "datadir": settings.datadir / site,
        "peer": f"http://{address}:{ports[site.other]}",
        "peer_token": settings.datadir / "keys" / site,
        "tokens": settings.datadir / "keys" / "tokens.json",
        "rule": settings.rule,
        "tie": settings.tie,
        "insecure_no_auth": settings.insecure_no_auth,
        "log_level": settings.log_level,
    }
    if settings.broker:
        options["broker"] = settings.broker
    return command_line(options, settings.config_file)
