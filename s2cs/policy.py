"""Policy: who may open tunnels, to where, how many, how fast and for how long.

The first rule whose subjects, issuers and roles match decides alone; where none does, nothing is allowed. A rule names
its targets as `NETWORK:PORTS`, such as `192.168.100.0/24:5000-6000`, `[fd00::/64]:5560` or `detector.lab:5560`:

    rules:
      - subjects: ["alice@*"]
        roles: [PROD]
        targets: ["192.168.100.0/24:5000-6000"]
        max_sessions: 4
        max_connections: 16
        max_rate: 100 MB
        max_lease: 2 days

A target given by name is resolved once; the address found is judged, and it is the address that the proxy connects to:
what the name means later changes nothing. A rule that holds a name lets that name pass, wherever it lies, except to
this gateway itself. Some addresses are no targets whatever a rule says: those where a cloud hands out credentials,
those that mean no single host, and ports of the control server itself. Loopback must be named by a rule of its own.
"""

import ipaddress
import re
import socket
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, PrivateAttr, ValidationError
from pydantic_core import ErrorDetails

from ministream.base.errors import UserError
from ministream.base.units import Duration, Size
from s2cs.addresses import Address
from s2cs.auth import Identity
from s2cs.sessions import Role

IpAddress = IPv4Address | IPv6Address
IpNetwork = IPv4Network | IPv6Network

_LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))

_NEVER: dict[str, tuple[IpNetwork, ...]] = {
    reason: tuple(ipaddress.ip_network(network) for network in networks.split())
    for reason, networks in {
        "it means no host in particular": "0.0.0.0/8 ::/128",
        "it is link-local": "169.254.0.0/16 fe80::/10",
        "a cloud's metadata are served there": "168.63.129.16/32 100.100.100.200/32 192.0.0.192/32 fd00:ec2::254/128",
        "it is no address of one host": "224.0.0.0/4 240.0.0.0/4 ff00::/8",
        "it hides an IPv4 address (NAT64, 6to4, Teredo)": "64:ff9b::/96 2002::/16 2001::/32",
    }.items()
}


class Denied(UserError):  # noqa: N818 - says what is wrong, as its base does
    """The policy does not allow what was asked for."""


@dataclass(frozen=True, slots=True)
class Destination:
    """Where tunnels may lead: a network, or a host by its name, and ports."""

    text: str
    network: IpNetwork | None
    name: str
    ports: range

    def holds(self, host: str, address: IpAddress, port: int) -> bool:
        """Return whether it allows `port` of `address`, which was asked for as `host`."""
        return port in self.ports and self._holds_host(host, address)

    def _holds_host(self, host: str, address: IpAddress) -> bool:
        own = address.is_loopback
        if self.network is None:
            return _plain_name(host) == self.name and (not own or self.name == "localhost")
        return address in self.network and (not own or _is_within(self.network, _LOOPBACK))


def parse_destination(text: object) -> Destination:
    """Read `NETWORK:PORTS`: a network, address or host name (IPv6 in brackets), and a port or FIRST-LAST.

    Raises
    ------
    UserError
        If it is not of that form.
    """
    words = str(text).strip()
    host, _, ports = words.rpartition(":")
    try:
        network, name = _read_host(host)
        return Destination(words, network, name, _read_ports(ports))
    except ValueError as error:
        raise UserError(
            f"{words!r} names no targets ({error}); give NETWORK:PORTS: 192.168.1.0/24:5000-6000"
        ) from error


def _read_ports(text: str) -> range:
    first, dash, last = text.partition("-")
    ends = first, last if dash else first
    if not all(end.isascii() and end.isdigit() and len(end) <= 5 for end in ends):
        raise ValueError(f"{text!r} is neither a port nor FIRST-LAST")
    ports = range(int(ends[0]), int(ends[1]) + 1)
    if not ports or ports.start < 1 or ports.stop > 65536:
        raise ValueError("ports must rise and lie between 1 and 65535")
    return ports


def _read_host(text: str) -> tuple[IpNetwork | None, str]:
    if text.startswith("[") and text.endswith("]"):
        return ipaddress.IPv6Network(text[1:-1]), ""
    if re.fullmatch(r"[\d./]+", text, re.ASCII):
        return ipaddress.IPv4Network(text), ""
    if not re.fullmatch(r"\w[\w.-]*", text, re.ASCII):
        raise ValueError(f"{text!r} is neither a network, IPv6 in brackets, nor a host name")
    return None, _plain_name(text)


def _plain_name(host: str) -> str:
    return host.rstrip(".").lower()


def _as_destination(value: object) -> Destination:
    return value if isinstance(value, Destination) else parse_destination(value)


class Rule(BaseModel):
    """What some people may do."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    subjects: tuple[str, ...] = Field(min_length=1)
    """Patterns (`*`, `?`) of the names of identities."""
    issuers: tuple[str, ...] = Field(default=("*",), min_length=1)
    """Patterns of who vouches for them: `local` for tokens of this site. The same name of two issuers is two people."""
    roles: tuple[Role, ...] = Field(default=tuple(Role), min_length=1)
    targets: tuple[Annotated[Destination, PlainValidator(_as_destination)], ...] = ()
    max_sessions: int | None = Field(default=None, ge=1)
    """Live sessions of one identity."""
    max_connections: int | None = Field(default=None, ge=1)
    """Connections of one session."""
    max_rate: Size | None = Field(default=None, ge=1)
    """Bytes per second of one session; who asks for no limit is given this one."""
    max_lease: Duration | None = Field(default=None, gt=0)
    """Time after which a session ends, renewed or not."""

    def matches(self, identity: Identity, role: Role) -> bool:
        """Return whether this rule is about `identity` in `role`."""
        return (
            role in self.roles
            and any(fnmatchcase(identity.subject, pattern) for pattern in self.subjects)
            and any(fnmatchcase(identity.issuer, pattern) for pattern in self.issuers)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a session may have."""

    rate: int
    """Bytes per second; 0: unlimited."""
    max_lease: float
    """Seconds after which it ends, renewed or not; 0: unlimited."""


class Policy(BaseModel):
    """The rules of one control server; `load_policy` and `default_policy` make it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rules: tuple[Rule, ...]

    _own_ports: frozenset[int] = PrivateAttr(default=frozenset())
    _place: str = PrivateAttr(default="the policy")

    def at(self, place: str, own_ports: Collection[int]) -> Self:
        """Say where the operator can change the rules, and which ports of this machine are never targets."""
        self._place, self._own_ports = place, frozenset(own_ports)
        return self

    def judge(self, identity: Identity, role: Role, num_conn: int, rate: int, live_sessions: int) -> Grant:
        """Judge a request for a session.

        Parameters
        ----------
        identity, role
            Who asks for which end.
        num_conn
            Connections asked for.
        rate
            Bytes per second asked for; 0: unlimited.
        live_sessions
            How many sessions `identity` has already.

        Raises
        ------
        Denied
            With the limit that the request exceeds.
        """
        rule = self._rule(identity, role)
        limits = (
            ("sessions at once", live_sessions + 1, rule.max_sessions),
            ("connections of a session", num_conn, rule.max_connections),
            ("bytes per second", rate, rule.max_rate),
        )
        for what, wanted, limit in limits:
            if limit is not None and wanted > limit:
                raise Denied(f"{identity} may have {limit} {what}, not {wanted}; the operator can change {self._place}")
        return Grant(rate=rate or rule.max_rate or 0, max_lease=rule.max_lease or 0.0)

    def judge_targets(self, identity: Identity, role: Role, targets: Iterable[Address]) -> tuple[Address, ...]:
        """Return the addresses to connect to, one for each of `targets`, names resolved. It may wait for a name server.

        Raises
        ------
        Denied
            Naming the first target that is not allowed, the reason, and what the operator can do.
        """
        rule = self._rule(identity, role)
        wanted = tuple(targets)
        resolved = {host: _resolve(host) for host in dict.fromkeys(target.host for target in wanted)}
        return tuple(self._judge_target(rule, target, resolved[target.host]) for target in wanted)

    def _rule(self, identity: Identity, role: Role) -> Rule:
        for rule in self.rules:
            if rule.matches(identity, role):
                return rule
        raise Denied(f"no rule lets {identity} open tunnels as {role}; the operator can add one to {self._place}")

    def _judge_target(self, rule: Rule, target: Address, addresses: list[IpAddress]) -> Address:
        """Return the first of the target's addresses that is allowed."""
        objections = [(self._objection(rule, target, address), address) for address in addresses]
        for objection, address in objections:
            if not objection:
                return Address(str(address), target.port)
        reason, address = objections[0]
        meant = "" if str(address) == target.host else f" ({address})"
        raise Denied(f"target {target}{meant} is not allowed: {reason}")

    def _objection(self, rule: Rule, target: Address, address: IpAddress) -> str:
        """Return why `address` is no allowed meaning of `target`, and what to do; nothing if it is one."""
        for reason, networks in _NEVER.items():
            if any(address in network for network in networks):
                return f"{reason}; no rule can allow it"
        if target.port in self._own_ports and _is_own(address):
            return "the control server itself is there; no rule can allow it"
        if any(d.holds(target.host, address, target.port) for d in rule.targets):
            return ""
        network = f"[{address}]" if address.version == 6 else str(address)
        return f"no rule names it; the operator can add {network}:{target.port} to {self._place}"


def default_policy(allow: str, own_ports: Collection[int]) -> Policy:
    """Return the policy of a server without a policy file: everybody who is let in may reach what `allow` names.

    Parameters
    ----------
    allow
        The option `--allow`: `NETWORK:PORTS`, divided by commas; nothing: no target is allowed.
    own_ports
        Ports of this machine that are never targets.

    Raises
    ------
    UserError
        If `allow` is not of that form.
    """
    try:
        targets = tuple(parse_destination(part) for part in allow.split(",") if part.strip())
    except UserError as error:
        raise UserError(f"--allow: {error}") from error
    return Policy(rules=(Rule(subjects=("*",), targets=targets),)).at("--allow", own_ports)


def load_policy(path: Path, own_ports: Collection[int]) -> Policy:
    """Read the policy file `path` (YAML); `own_ports` of this machine are never targets.

    Raises
    ------
    UserError
        Naming the rule and the key, and what is wrong there.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Policy.model_validate(content).at(f"the policy file {path}", own_ports)
    except OSError as error:
        raise UserError(f"policy file {path}: {error.strerror}; give an existing YAML file") from error
    except ValidationError as error:
        raise UserError(f"policy file {path}: {_explain(error)}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"policy file {path} is not YAML: {' '.join(str(error).split())}") from error


def _explain(error: ValidationError) -> str:
    problems = [(_place(problem["loc"]), problem) for problem in error.errors()]
    first = dict(reversed(problems))  # what follows from the first is no news
    return "; ".join(f"{place}: {_say(problem)}" for place, problem in first.items())


def _place(keys: tuple[int | str, ...]) -> str:
    match keys:
        case ("rules", int(number), *rest):
            return ", ".join([f"rule {number + 1}", *map(str, rest[:1])])
        case _:
            return ", ".join(map(str, keys)) or "its top level"


def _say(problem: ErrorDetails) -> str:
    if problem["type"] == "extra_forbidden":
        known = Rule.model_fields if len(problem["loc"]) > 1 else Policy.model_fields
        return f"no such key; known are {', '.join(known)}"
    return problem["msg"].removeprefix("Value error, ")


def _resolve(host: str) -> list[IpAddress]:
    """Return the addresses of `host`; an IPv4 address in IPv6's clothes is judged as what it is."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, ValueError) as error:
        raise Denied(f"target {host}: its name is not known to this gateway; check it, or give an address") from error
    addresses = (ipaddress.ip_address(str(address[0])) for *_, address in found)
    return [getattr(address, "ipv4_mapped", None) or address for address in addresses]


def _is_within(network: IpNetwork, others: Iterable[IpNetwork]) -> bool:
    return any(network.version == other.version and network.subnet_of(other) for other in others)  # type: ignore[arg-type]


def _is_own(address: IpAddress) -> bool:
    """Return whether `address` is one of this machine's: only such can be bound to."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(address), 0))
        except OSError:
            return False
    return True
