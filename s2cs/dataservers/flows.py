"""What Linux tells about TCP connections: how much those that are open have carried, and those that have ended.

The kernel's socket diagnostics answer anybody, and touch no connection.
"""

import ctypes
import errno
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Flow:
    """A TCP connection, by the number that no other ever gets, and the payload bytes that it has received and sent.

    The kernel counts a peer's orderly end as a byte, which is taken off here: from one that was broken off, too, since
    afterwards the two look alike.
    """

    cookie: int
    received: int
    sent: int


# linux/sock_diag.h, inet_diag.h, tcp.h: the request, the head of each answer, and where tcp_info keeps its counters
_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, _DUMP, _INFO = 4, 20, 0x301, 2
_CLOSE, _CLOSE_WAIT, _LAST_ACK, _CLOSING = 7, 8, 9, 11
_PEER_ENDED = (_CLOSE, _CLOSE_WAIT, _LAST_ACK, _CLOSING)
_CARRYING = 1 << 1 | 1 << 4 | 1 << 5 | 1 << _CLOSE_WAIT | 1 << _LAST_ACK | 1 << _CLOSING  # established, or half-way out
_ENDS = 1 << 0 | 1 << 2  # the groups that hear of each TCP socket's end, IPv4 and IPv6
_HEADER, _REQUEST = struct.Struct("=IHHII"), struct.Struct("=BBBxI48s")
_ERROR, _DONE = 2, 3
_STATE_AT, _PORT_AT, _COOKIE_AT, _ATTRIBUTES_AT, _RECEIVED_AT, _SENT_AT, _INFO_END = 1, 4, 44, 72, 128, 200, 216
_BUFFER = 1 << 20
_ATTACH_FILTER = 26  # asm-generic/socket.h


def open_flows(ports: Iterable[int]) -> list[Flow]:
    """Return the open TCP connections whose local port is one of these.

    Raises
    ------
    OSError
        If the kernel does not tell.
    """
    wanted = frozenset(ports)
    return [flow for family in (socket.AF_INET, socket.AF_INET6) for flow in _dump(family, wanted)]


class EndedFlows:
    """Hears of every TCP connection that ends at these local ports, however short it was.

    Raises
    ------
    OSError
        If the kernel does not tell.
    """

    def __init__(self, ports: frozenset[int]) -> None:
        self._ports = ports
        self._link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _SOCK_DIAG)
        try:
            self._link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            _let_pass(self._link, min(ports), max(ports))
            self._link.bind((0, _ENDS))
        except BaseException:
            self.close()
            raise

    def read(self) -> list[Flow]:
        """Return those that have ended since the last call; some are missed where a thousand did."""
        ended: list[Flow] = []
        while True:
            try:
                data = self._link.recv(_BUFFER)
            except BlockingIOError:
                return ended
            except OSError as error:  # the queue was full: what it holds is good
                if error.errno != errno.ENOBUFS:
                    raise
                continue
            ended += _read_answer(data[_HEADER.size :], self._ports)

    def close(self) -> None:
        """Hear no more."""
        self._link.close()


def _let_pass(link: socket.socket, first: int, last: int) -> None:
    """Let the kernel itself drop what concerns other ports, so that a busy gateway costs nothing."""
    program = [
        (0x28, 0, 0, _HEADER.size + _PORT_AT),  # load the port
        (0x35, 0, 2, first),  # less than the first: to the last line
        (0x25, 1, 0, last),  # more than the last: to the last line
        (0x06, 0, 0, 0xFFFFFFFF),  # pass
        (0x06, 0, 0, 0),  # drop
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    link.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("HP", len(program), ctypes.addressof(code)))


def _dump(family: int, ports: frozenset[int]) -> Iterator[Flow]:
    request = _REQUEST.pack(family, socket.IPPROTO_TCP, 1 << (_INFO - 1), _CARRYING, b"")
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as link:
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
    cookie = struct.unpack_from("=Q", answer, _COOKIE_AT)[0]
    at = _ATTRIBUTES_AT
    while at < len(answer):
        length, kind = struct.unpack_from("=HH", answer, at)
        if kind == _INFO and length >= 4 + _INFO_END:  # Linux 4.19
            (received,) = struct.unpack_from("=Q", answer, at + 4 + _RECEIVED_AT)
            sent, again = struct.unpack_from("=QQ", answer, at + 4 + _SENT_AT)
            yield Flow(cookie, max(0, received - (answer[_STATE_AT] in _PEER_ENDED)), sent - again)
        at += (length + 3) & ~3
