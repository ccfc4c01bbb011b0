"""`delivery placed repair`: mends what a check finds, by the sites' own means, and checks again.

A site that lacks a file is asked to fetch it, one that has what does not belong there to offer it; nothing is deleted
but in the ordinary way, once the other site holds it.
"""

from delivery.placed.check import check, connected, wait_for_moves
from delivery.placed.settings import RepairSettings
from ministream.base.log import get_logger


def main(settings: RepairSettings) -> int:
    """Mend; exit code 1 if something could not be."""
    with connected(settings) as peers:
        wait_for_moves(peers, settings.patience)
        faults = check(peers, read=settings.read)
        mends = [mend for fault in faults for mend in fault.mends]
        for mend in mends:
            get_logger().info("asked to", site=mend.site, action=mend.action, id=mend.file.id, name=mend.file.name)
            peers[mend.site].mend(mend.file, mend.action)
        if mends:
            wait_for_moves(peers, settings.patience)
            faults = check(peers, read=settings.read)
        return 1 if faults else 0
