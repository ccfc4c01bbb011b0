"""A proxy's traffic as the kernel counts it, for programs that do not count themselves."""

from s2cs.dataservers import proc
from s2cs.dataservers.spec import Traffic


class Meter:
    """Adds up what the connections to these ports carry, but for that between the last reading and its end."""

    def __init__(self, ports: frozenset[int]) -> None:
        self._ports = ports
        self._open: dict[int, proc.Flow] = {}
        self._received = self._sent = 0

    def read(self) -> Traffic | None:
        """Return the sum since this object was made; None where the kernel does not tell."""
        try:
            now = {flow.inode: flow for flow in proc.flows(self._ports)}
        except OSError:
            return None
        for flow in (flow for inode, flow in self._open.items() if inode not in now):
            self._received += flow.received
            self._sent += flow.sent
        self._open = now
        received = self._received + sum(flow.received for flow in now.values())
        return Traffic(received, self._sent + sum(flow.sent for flow in now.values()), len(now))
