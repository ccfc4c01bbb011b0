"""The ports on which proxies may listen: taken as contiguous blocks, given back on release.

Blocks are contiguous because the APS mini-apps' workers connect to a base port plus their rank. The lowest block that
fits is taken, so that the first session of a gateway always has the same ports. A port that another program listens on
is passed over. Owned by the server's event loop: not safe against threads.
"""

import errno
import socket
from itertools import pairwise

from ministream.base.errors import UserError


class PortsExhausted(UserError):  # noqa: N818 - says what is wrong, as its base does
    """No block of the wanted length is free."""


class PortPool:
    """The ports of `ports` on the address `host`.

    Raises
    ------
    UserError
        If `host` is no address of this machine.
    """

    def __init__(self, ports: range, host: str = "127.0.0.1") -> None:
        self._ports, self._host = ports, host
        self._family, self._address = _resolve(host)
        self._blocks: set[range] = set()
        self._probe(0)

    @property
    def free(self) -> int:
        """How many ports of the range no session holds."""
        return sum(len(gap) for gap in self._gaps())

    def take(self, count: int) -> range:
        """Take the lowest block of `count` ports that no session holds and no other program listens on.

        Raises
        ------
        PortsExhausted
            If there is none.
        UserError
            If `count` is not positive.
        """
        if count < 1:
            raise UserError(f"{count} connections asked for; give num_conn of 1 or more")
        for gap in self._gaps():
            start = gap.start
            while start + count <= gap.stop:
                block = range(start, start + count)
                busy = next((port for port in reversed(block) if not self._probe(port)), None)
                if busy is None:
                    self._blocks.add(block)
                    return block
                start = busy + 1
        ends = f"{self._ports.start} to {self._ports.stop - 1}"
        raise PortsExhausted(
            f"no {count} neighbouring ports are free from {ends} on {self._host}: sessions leave {self.free} "
            f"of {len(self._ports)}; release sessions or widen --port-range"
        )

    def take_exact(self, block: range) -> None:
        """Take the ports of a session that comes back, even if its proxy listens on them still.

        They may lie outside the range, since that may have been changed meanwhile.

        Raises
        ------
        PortsExhausted
            If another session holds one of them.
        """
        if any(block.start < other.stop and other.start < block.stop for other in self._blocks):
            raise PortsExhausted(f"ports {block.start} to {block.stop - 1} are held by another session")
        self._blocks.add(block)

    def give_back(self, block: range) -> None:
        """Return a block that was taken; `ValueError` if it was not, or was given back before."""
        if block not in self._blocks:
            raise ValueError(f"ports {block.start} to {block.stop - 1} are not taken as one block")
        self._blocks.remove(block)

    def _gaps(self) -> list[range]:
        """Return the stretches of the range between the blocks, lowest first."""
        first, end = self._ports.start, self._ports.stop
        edges = [range(first, first), *sorted(self._blocks, key=lambda block: block.start), range(end, end)]
        gaps = (range(max(left.stop, first), min(right.start, end)) for left, right in pairwise(edges))
        return [gap for gap in gaps if gap]

    def _probe(self, port: int) -> bool:
        """Return whether a proxy could listen on `port`: ports of closed connections count as free, as for proxies."""
        with socket.socket(self._family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((self._address, port))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    return False
                raise UserError(
                    f"cannot listen on {self._host}, port {port}: {error.strerror}; "
                    f"give an address of this machine and ports that its user may open"
                ) from error
        return True


def _resolve(host: str) -> tuple[socket.AddressFamily, str]:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"listening address {host!r} cannot be resolved: {error}; give an address of this machine"
        ) from error
    return family, str(address[0])
