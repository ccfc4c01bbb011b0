"""Network addresses as they are written in commands and messages: `host:port`."""

from dataclasses import dataclass

from ministream.base.errors import UserError


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """A host (name or IP address) and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_address(text: str) -> Address:
    """Read `host:port`, an IPv6 host in brackets.

    Raises
    ------
    UserError
        If it is not of that form, or the port is not one.
    """
    host, colon, port = text.strip().rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    name = host[1:-1] if bracketed else host
    if not colon or not name or (":" in name and not bracketed) or any(c.isspace() or c in "\"'\\{};#" for c in name):
        raise UserError(f"{text!r} is no address: give HOST:PORT, such as 192.168.100.10:5560")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise UserError(f"{text!r} has no valid port: give one from 1 to 65535")
    return Address(name, int(port))


def parse_addresses(text: str) -> tuple[Address, ...]:
    """Read addresses that are divided by commas."""
    return tuple(parse_address(part) for part in text.split(","))
