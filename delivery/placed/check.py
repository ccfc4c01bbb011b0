"""`delivery placed check` finds files that are not where they belong, once, whole and on record.

Both sites list what is on record and on their disks in order of ids; the two lists are gone through side by side, so
that a million files take no more memory than one.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from delivery.placed.messages import File
from delivery.placed.peer import Copy, Peer
from delivery.placed.register import State
from delivery.placed.rules import Site
from delivery.placed.settings import CheckSettings
from ministream.base.log import get_logger

LOOK = 0.5
"""Seconds between two looks for files that are on their way."""

Found = Mapping[Site, Copy]
"""What each site says of one file."""


class Mend(NamedTuple):
    """What a site is to be asked for: to "offer" or to "fetch" a file."""

    site: Site
    action: str
    file: File


class Fault(NamedTuple):
    """What is wrong with one file, and what mends it, if anything does."""

    id: str
    name: str
    text: str
    mends: tuple[Mend, ...] = ()


def main(settings: CheckSettings) -> int:
    """Tell what is wrong; exit code 1 if anything is."""
    with connected(settings) as peers:
        wait_for_moves(peers, settings.patience)
        return 1 if check(peers, read=settings.read) else 0


@contextmanager
def connected(settings: CheckSettings) -> Iterator[dict[Site, Peer]]:
    """Yield both sites."""
    peers = {Site.ZERO: Peer(settings.zero, settings.token), Site.ONE: Peer(settings.one, settings.token)}
    try:
        yield peers
    finally:
        for peer in peers.values():
            peer.close()


def wait_for_moves(peers: Mapping[Site, Peer], patience: float) -> None:
    """Wait until no file is on its way, `patience` seconds at most."""
    until = time.monotonic() + patience
    while any(_moves(copy) for peer in peers.values() for copy in peer.copies(read=False)):
        if time.monotonic() > until:
            return
        time.sleep(LOOK)


def check(peers: Mapping[Site, Peer], *, read: bool) -> list[Fault]:
    """Return, and log, what is wrong at both sites; with `read`, every byte is digested."""
    faults: list[Fault] = []
    files, sizes = Counter[Site](), Counter[Site]()
    for found in side_by_side({site: peer.copies(read=read) for site, peer in peers.items()}):
        for site, copy in found.items():
            if copy.file and copy.state is State.HERE:
                files[site] += 1
                sizes[site] += copy.file.size
        if fault := find_fault(found):
            faults.append(fault)
            tell = get_logger().warning if fault.mends else get_logger().error
            tell(fault.text, id=fault.id, name=fault.name, can_be_mended=bool(fault.mends))
    for site in Site:
        get_logger().info("looked at", site=site, files=files[site], bytes=sizes[site])
    get_logger().info("all is right" if not faults else "not all is right", faults=len(faults))
    return faults


def side_by_side(lists: Mapping[Site, Iterable[Copy]]) -> Iterator[dict[Site, Copy]]:
    """Yield what the sites say of each file, from lists in order of ids."""
    iterators = {site: iter(copies) for site, copies in lists.items()}
    heads = {site: next(iterator, None) for site, iterator in iterators.items()}
    while ids := [copy.id for copy in heads.values() if copy]:
        least = min(ids)
        found = {site: copy for site, copy in heads.items() if copy and copy.id == least}
        yield found
        for site in found:
            heads[site] = next(iterators[site], None)


def find_fault(found: Found) -> Fault | None:
    """Return what is wrong with a file, None if nothing is."""
    file = next((copy.file for copy in found.values() if copy.file), None)
    if file is None:
        return Fault(next(iter(found.values())).id, "", "its bytes are on record nowhere; keep or delete them")
    texts, mends = [], list[Mend]()
    for site in Site:
        text, action = _judge(site, found, file)
        if text:
            texts.append(f"{site}: {text}")
            mends += [Mend(site, action, file)] if action else []
    return Fault(file.id, file.name, "; ".join(texts), tuple(mends)) if texts else None


def _judge(site: Site, found: Found, file: File) -> tuple[str, str]:
    """Return what is wrong with a file at one site, and what it is to be asked for; empty if nothing."""
    here = found.get(site)
    if file.place.includes(site):
        if here and here.state is State.HERE and _whole(here):
            return "", ""
        wrong = _wrong(here)
        source = found.get(site.other)
        if (here and _whole(here)) or (source and source.file and _whole(source)):
            return wrong, "fetch"
        return f"{wrong}, and no other copy is left", ""
    if here and here.file is None:
        return "its bytes lie where it does not belong, on no record; upload it here again, or delete them", ""
    if here and (here.state in (State.HERE, State.LEAVING) or _whole(here)):
        return "it lies where it does not belong", "offer"
    return "", ""


def _wrong(copy: Copy | None) -> str:
    if copy is None:
        return "it is missing"
    if copy.file is None:
        return "it is not on record"
    if copy.state is State.HERE:
        return f"its bytes are {copy.bytes}"
    return f"it is {copy.state}, not here"


def _whole(copy: Copy) -> bool:
    return copy.bytes in ("good", "unread")


def _moves(copy: Copy) -> bool:
    return copy.state in (State.LEAVING, State.ARRIVING)
