"""What a stream lost, as far as its packet numbers tell."""

from aps_mini_apps.frames import Frame
from ministream.base.log import get_logger

LARGEST_GAP = 1_000_000
"""Packets: a jump beyond it is a sender that counts otherwise, not a loss."""


class SequenceCounter:
    """Looks at every frame that arrives and counts those that never did.

    A `numbered` frame's sender counts packets without gaps from 0: a jump is a loss, known at once. Senders
    of the APS mini-apps number by position in the file and send in another order, with repeats: their gaps
    show only at the end of the scan, and mean something only if the whole file was sent, so that they are
    counted only on request (`check_unnumbered`).

    Attributes
    ----------
    lost
        Number of packets that were sent (by their numbers) and did not arrive.
    last
        Packet number of the frame seen last; None before the first.
    """

    def __init__(self, *, check_unnumbered: bool = False) -> None:
        self.lost = 0
        self.last: int | None = None
        self._seen: set[int] | None = set() if check_unnumbered else None

    def see(self, frame: Frame) -> None:
        """Take note of a frame that arrived."""
        if frame.numbered:
            self._follow(frame.sequence)
        elif self._seen is not None:
            self._seen.add(frame.sequence)
        self.last = frame.sequence

    def finish(self) -> None:
        """Take note of the end of the scan."""
        if self._seen:
            self._count(max(self._seen) + 1 - len(self._seen), "at the end of the scan")

    def _follow(self, sequence: int) -> None:
        due = 0 if self.last is None else self.last + 1
        if sequence - due > LARGEST_GAP:
            get_logger().warning("packet numbers jumped", due=due, packet=sequence)
        elif sequence < due:
            get_logger().warning("packet numbers went back", due=due, packet=sequence)
        else:
            self._count(sequence - due, f"before packet {sequence}")

    def _count(self, missing: int, where: str) -> None:
        if missing > 0:
            self.lost += missing
            get_logger().warning("packets lost", missing=missing, where=where, lost=self.lost)

    def __str__(self) -> str:
        return "no packet so far" if self.last is None else f"last packet {self.last}"
