"""A proxy's traffic as the kernel counts it: at once, and whether or not the program counts, too.

At the encrypted end, what it counts is what is on the wire: some thousandths more than what the other end carries.
"""

from s2cs.dataservers.flows import EndedFlows, Flow, open_flows
from s2cs.dataservers.spec import Traffic


class Meter:
    """Adds up what the connections to these ports carry, from when it is made until it is closed."""

    def __init__(self, ports: frozenset[int]) -> None:
        self._ports = ports
        self._known: dict[int, Flow] = {}
        """As last seen: the open ones, and those whose end was not told (yet)."""
        self._received = self._sent = 0
        self._ends: EndedFlows | None = None
        try:
            self._ends = EndedFlows(ports)
        except OSError:
            return

    def read(self) -> Traffic | None:
        """Return the sum so far; None where the kernel does not tell."""
        if self._ends is None:
            return None
        try:
            now = {flow.cookie: flow for flow in open_flows(self._ports)}
            ended = self._ends.read()  # asked second: no connection slips through between the two
        except OSError:
            return None
        self._known |= now
        for flow in ended:
            seen = self._known.pop(flow.cookie, flow)
            self._received += max(seen.received, flow.received)  # a count never falls
            self._sent += flow.sent
        received = self._received + sum(flow.received for flow in self._known.values())
        sent = self._sent + sum(flow.sent for flow in self._known.values())
        return Traffic(received, sent, len(now.keys() & self._known.keys()))

    def close(self) -> None:
        """Count no more."""
        if self._ends:
            self._ends.close()
            self._ends = None
