"""What Linux tells about processes and sockets: who listens where, which processes are a proxy's, how much has flowed.

All is read from /proc and from the kernel's socket diagnostics, needs no privileges for processes of the same user,
and touches no connection: a listener is found without connecting to it.
"""

import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_LISTEN = "0A"
_GONE = (FileNotFoundError, ProcessLookupError, PermissionError)


def started(pid: int) -> int:
    """Return when the process began, in clock ticks since boot; 0 if there is none, or only its remains."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except _GONE:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


def members(folder: Path) -> dict[int, Path]:
    """Return the processes whose standard error is a file below `folder`, and that file.

    So a proxy is known, with whatever it has started and with what outlived it; somebody reading the file is not.
    """
    found = {}
    for process in _listed(_PROC):
        if process.name.isdigit() and (log := _link(process / "fd/2")) and log.startswith(f"{folder}/"):
            found[int(process.name)] = Path(log.removesuffix(" (deleted)"))
    return found


def listening_ports(pid: int) -> frozenset[int]:
    """Return the TCP ports that this very process listens on."""
    links = (_link(link) for link in _listed(_PROC / str(pid) / "fd"))
    own = {link[8:-1] for link in links if link.startswith("socket:[")}
    return frozenset(port for port, inode in _listeners() if inode in own)


def listened_ports() -> frozenset[int]:
    """Return the TCP ports that any process listens on."""
    return frozenset(port for port, _ in _listeners())


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except _GONE:
        return []


def _link(path: Path) -> str:
    try:
        return str(path.readlink())
    except _GONE:
        return ""


def _listeners() -> Iterator[tuple[int, str]]:
    """Yield local port and inode of every TCP socket that listens; these stand first in the kernel's tables."""
    for table in ("tcp", "tcp6"):
        with suppress(FileNotFoundError), (_PROC / "net" / table).open() as lines:  # a kernel may have no IPv6
            next(lines)
            for fields in map(str.split, lines):
                if fields[3] != _LISTEN:
                    break
                yield int(fields[1].rpartition(":")[2], 16), fields[9]


@dataclass(frozen=True, slots=True)
class Flow:
    """A TCP connection, known by its inode, and the payload bytes that it has received and delivered."""

    inode: int
    received: int
    sent: int


# linux/sock_diag.h, inet_diag.h, tcp.h: the request, the head of each answer, and where tcp_info keeps its counters
_SOCK_DIAG_BY_FAMILY, _DUMP, _INFO, _ESTABLISHED, _CLOSE_WAIT = 20, 0x301, 2, 1, 8
_HEADER, _REQUEST = struct.Struct("=IHHII"), struct.Struct("=BBBxI48s")
_ERROR, _DONE = 2, 3
_PORT_AT, _INODE_AT, _ATTRIBUTES_AT, _ACKED_AT = 4, 68, 72, 120


def flows(ports: Iterable[int]) -> list[Flow]:
    """Return the open TCP connections whose local port is one of these.

    Raises
    ------
    OSError
        If the kernel does not tell.
    """
    wanted = frozenset(ports)
    return [flow for family in (socket.AF_INET, socket.AF_INET6) for flow in _dump(family, wanted)]


def _dump(family: int, ports: frozenset[int]) -> Iterator[Flow]:
    states = 1 << _ESTABLISHED | 1 << _CLOSE_WAIT
    request = _REQUEST.pack(family, socket.IPPROTO_TCP, 1 << (_INFO - 1), states, b"")
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as link:  # 4: NETLINK_SOCK_DIAG
        link.settimeout(1)
        link.send(_HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _DUMP, 0, 0) + request)
        while True:
            data, at = link.recv(1 << 18), 0
            while at < len(data):
                length, kind, *_ = _HEADER.unpack_from(data, at)
                if kind == _ERROR:
                    raise OSError("the kernel answers no socket diagnostics")
                if kind == _DONE:
                    return
                yield from _read_answer(data[at + _HEADER.size : at + length], ports)
                at += (length + 3) & ~3


def _read_answer(answer: bytes, ports: frozenset[int]) -> Iterator[Flow]:
    port = struct.unpack_from("!H", answer, _PORT_AT)[0]
    if port not in ports:
        return
    inode = struct.unpack_from("=I", answer, _INODE_AT)[0]
    at = _ATTRIBUTES_AT
    while at < len(answer):
        length, kind = struct.unpack_from("=HH", answer, at)
        if kind == _INFO:
            acked, received = struct.unpack_from("=QQ", answer, at + 4 + _ACKED_AT)
            yield Flow(inode, received, acked)
        at += (length + 3) & ~3
