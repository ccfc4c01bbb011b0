"""What Linux tells about processes: which are a proxy's, and who listens where.

All is read from /proc, needs no privileges for processes of the same user, and touches no connection: a listener is
found without connecting to it.
"""

from collections.abc import Iterator
from contextlib import suppress
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
