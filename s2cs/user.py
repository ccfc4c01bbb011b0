"""The `s2uc` command: SciStream's user client.

Results go to standard output in SciStream's own lines, since scripts read them; what is for people only goes to
standard error. A command is short-lived and is waited for: the parser is `argparse` (typer would double the
start), gRPC is imported only by commands that call somebody, and nothing else is.
"""

import argparse
import os
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ministream.base.errors import UserError
from ministream.base.lifecycle import StopFlag, Stopped
from s2cs import logins
from s2cs.addresses import parse_address

if TYPE_CHECKING:
    from s2cs.client import Gateway, Tunnel
    from s2cs.proto import scistream_pb2 as pb

T = TypeVar("T")

EXIT_REFUSED, EXIT_UNREACHABLE, EXIT_LOST, EXIT_STOPPED = 2, 3, 4, 130
TOKEN_VARIABLE = "S2UC_TOKEN"  # noqa: S105 - its name
MOCK_UID = "4f8583bc-a4d3-11ee-9fd6-034d1fcbd7c3"
"""The uid that SciStream's `--mock True` gives to every request."""
NO_TOKEN = "INVALID_TOKEN"  # noqa: S105 - what SciStream's client shows (and sends) where there is none
SERVER_CERT = "server.crt"
PRODUCER, CONSUMER = "localhost:5000", "localhost:6000"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its own lines say less than our errors, and come twice
    started = time.monotonic()
    given = _build_parser().parse_args(_with_dashes(sys.argv[1:] if arguments is None else arguments))
    given.started = started
    given.stop = StopFlag().install()
    command: Callable[[argparse.Namespace], int] = given.command
    try:
        return command(given)
    except UserError as error:
        _note(f"error: {error}")
        return EXIT_REFUSED if getattr(error, "reached", True) else EXIT_UNREACHABLE
    except Stopped as reason:
        _note(f"stopped: {reason}")
        return EXIT_STOPPED


def inbound_request(given: argparse.Namespace) -> int:
    """Open the producer's side, in front of the service."""
    uid = MOCK_UID if given.mock else str(uuid.uuid4())
    targets = [f"{given.remote_ip}:{port}" for port in _parts(given.receiver_ports)]
    return _request_one_side(given, uid, "PROD", targets=targets, onward=())


def prod_req(given: argparse.Namespace) -> int:
    """Open the producer's side for an application that greets by itself."""
    uid = MOCK_UID if given.mock else str(uuid.uuid4())
    return _request_one_side(given, uid, "PROD", targets=None, onward=())


def outbound_request(given: argparse.Namespace) -> int:
    """Open the consumer's side, in front of the application."""
    onward = [str(parse_address(part)) for part in _parts(given.prod_lstn)]
    return _request_one_side(given, given.uid, "CONS", targets=(), onward=onward)


def _request_one_side(
    given: argparse.Namespace, uid: str, role: str, *, targets: Sequence[str] | None, onward: Sequence[str]
) -> int:
    """Make SciStream's three calls to one server, and print what its client prints while it makes them."""
    token = _token(given, given.s2cs)
    shown = (token or NO_TOKEN) if given.show_token else "-"
    _say("uid; s2cs; access_token; role")
    _say(f"{uid} {given.s2cs} {shown} {role}")
    with _gateway(given, given.s2cs) as gateway:
        _say("sending client request message" if targets is not None else "waiting for hello message")
        answer = gateway.req(uid, role, connections=given.num_conn, rate=given.rate, targets=targets)
        if targets is not None:
            _say("Hello message sent successfully")
        try:
            updated = gateway.update(uid, role, onward or list(answer.prod_listeners) or targets or ())
        except BaseException:
            gateway.release(uid)
            raise
    _say(str(answer).rstrip())
    _say(f"Listeners: {list(answer.listeners)}")
    for warning in dict.fromkeys((*answer.warnings, *updated.warnings)):
        _note(f"warning: {warning}")
    _note("warning: requests for one side know no certificates: plaintext between the gateways (see `s2uc connect`)")
    return 0


def connect(given: argparse.Namespace) -> int:
    """Open both sides, hold the tunnel, and release it at the end."""
    from s2cs.client import GatewayError, Tunnel

    with ExitStack() as stack:
        producer = stack.enter_context(_gateway(given, given.producer_s2cs, "producer gateway"))
        consumer = stack.enter_context(_gateway(given, given.consumer_s2cs, "consumer gateway"))
        targets = _targets(given.target)
        tunnel = Tunnel(
            producer,
            consumer,
            targets,
            connections=given.num_conn,
            encrypted=not given.plaintext,
            rate=given.rate,
            uid=given.uid,
        )
        if given.detach:
            tunnel.open()
            _show_tunnel(given, tunnel)
            return 0
        stack.enter_context(tunnel)
        _show_tunnel(given, tunnel)
        try:
            tunnel.hold(given.stop)
        except Stopped as reason:
            _note(f"{reason}: released")
        except GatewayError as error:
            _note(f"error: {error}")
            return EXIT_LOST
    return 0


def _show_tunnel(given: argparse.Namespace, tunnel: "Tunnel") -> None:
    complaints = tunnel.probe() if given.probe else ()
    took = 1000 * (time.monotonic() - given.started)
    _say(f"uid: {tunnel.uid}")
    _say(f"Listeners: {list(tunnel.listeners)}")
    if not tunnel.encrypted:
        _note("warning: plaintext between the gateways: everybody on the way can read what passes")
    for text in (*tunnel.warnings, *complaints):
        _note(f"warning: {text}")
    if not given.detach:
        _note(f"open after {took:.0f} ms; Ctrl-C releases it")


def release(given: argparse.Namespace) -> int:
    """End a session on one server or on several."""
    _on_each(given, lambda gateway: gateway.release(given.uid))
    _say("Release completed")
    return 0


def status(given: argparse.Namespace) -> int:
    """Show all that the servers know of one session."""

    def show(gateway: "Gateway") -> int:
        sessions = gateway.list(given.uid)
        for session in sessions:
            _say("\n".join(f"{name + ':':<12}{value}" for name, value in _facts(gateway.address, session).items()))
        return len(sessions)

    if not sum(_on_each(given, show)):
        raise UserError(f"no session {given.uid} on {', '.join(given.s2cs or (PRODUCER,))}")
    return 0


def ls(given: argparse.Namespace) -> int:
    """List the sessions that the servers let the user see."""
    columns = ("gateway", "uid", "role", "state", "owner", "listeners", "targets", "traffic")
    found = _on_each(given, lambda gateway: [_facts(gateway.address, session) for session in gateway.list()])
    rows = [columns, *([facts[name] for name in columns] for facts in chain.from_iterable(found))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        _say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _on_each(given: argparse.Namespace, work: Callable[["Gateway"], T]) -> list[T]:
    """Do `work` with each server of `--s2cs`; one that refuses does not keep it from the others."""
    from s2cs.client import GatewayError

    done, refusals = [], []
    for address in given.s2cs or (PRODUCER,):
        with _gateway(given, address) as gateway:
            try:
                done.append(work(gateway))
            except GatewayError as error:
                refusals.append(error)
    if refusals:
        raise GatewayError("; ".join(map(str, refusals)), reached=any(error.reached for error in refusals))
    return done


def _facts(address: str, session: "pb.SessionState") -> dict[str, str]:
    facts = {
        "gateway": address,
        "uid": session.uid,
        "role": session.role,
        "state": session.state,
        "owner": session.owner,
        "proxy": f"{session.proxy}, {'encrypted' if session.encrypted else 'plaintext'}, {session.restarts} restarts",
        "listeners": ",".join(session.listeners),
        "targets": ",".join(session.targets),
        "traffic": f"{session.connections} connections, {session.bytes_in} B in, {session.bytes_out} B out",
        "age": f"{session.age_seconds:.0f} s",
        "lease": f"{session.lease_left_seconds:.0f} s left" if session.lease_left_seconds else "none",
    }
    return facts | ({"reason": session.reason} if session.reason else {})


def login(given: argparse.Namespace) -> int:
    """Store a token for a gateway, or get one from Globus."""
    if given.s2cs and given.scope is None:
        name, token = given.s2cs, _given_token(given) or _ask_token(given.s2cs)
    else:
        scope = given.scope or logins.GLOBUS_SCOPE
        name = given.s2cs or scope
        token = _given_token(given) or logins.globus_login(scope, _ask_code)
    logins.store(name, token)
    _say(f"Logged in to {name}")
    return 0


def logout(given: argparse.Namespace) -> int:
    """Remove stored tokens; the sites that gave them still accept them until they expire or are revoked there."""
    name = given.s2cs or given.scope or ""
    removed = logins.forget(name)
    if name and not removed:
        raise UserError(f"not logged in to {name}")
    _say("Successfully logged out!")
    return 0


def check_auth(given: argparse.Namespace) -> int:
    """Say whether there is a token for an address or a scope."""
    name = given.ip or given.scope
    token = _token(given, given.ip) if given.ip else logins.find(given.scope)
    if not token:
        raise UserError(f"no token for {name}; log in with `s2uc login`")
    kind = "address" if given.ip else "scope"
    _say(f"Access Token for {kind} '{name}': {token if given.show_token else '-'}")
    return 0


def _given_token(given: argparse.Namespace) -> str:
    """Return the token that the command line or the environment gives, if one does."""
    if given.token_file:
        return logins.read_token_file(given.token_file)
    token = os.environ.get(TOKEN_VARIABLE, "")
    return logins.check_token(token) if token else ""


def _token(given: argparse.Namespace, address: str) -> str:
    """Return the token to send to the gateway at `address`: given, or stored for it, its host or the scope."""
    if getattr(given, "no_ssl", False) and not given.token_file:
        return ""
    names = (given.scope or address, address, address.rpartition(":")[0])
    return _given_token(given) or logins.find(*names)


def _ask_token(name: str) -> str:
    if not sys.stdin.isatty():
        return sys.stdin.readline()
    from getpass import getpass

    return getpass(f"Token for {name}: ")


def _ask_code(page: str) -> str:
    line = "Please authenticate with Globus here"
    _say(f"{line}:\n{'-' * len(line)}\n{page}\n{'-' * len(line)}\n")
    return input("Enter the resulting Authorization Code here: ")


def _gateway(given: argparse.Namespace, address: str, name: str = "gateway") -> "Gateway":
    from s2cs.client import Gateway

    ca = given.ca or ([Path(SERVER_CERT)] if Path(SERVER_CERT).exists() else [])
    return Gateway(address, name=name, ca=ca, token=_token(given, address), tls=not given.no_ssl, stop=given.stop)


def _targets(text: str) -> list[str]:
    """Read `HOST:PORTS`, ports divided by commas, or several `HOST:PORT` so divided."""
    targets: list[str] = []
    for part in _parts(text):
        host = targets[-1].rpartition(":")[0] if targets and part.isdigit() else ""
        targets.append(str(parse_address(f"{host}:{part}" if host else part)))
    return targets


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()  # scripts wait for these lines


def _note(text: str) -> None:
    sys.stderr.write(f"s2uc: {text}\n")


def _with_dashes(arguments: Sequence[str]) -> list[str]:
    """Write `-` for `_` in the names of options and of the command: SciStream's are spelled both ways."""
    words = list(arguments)
    for i, word in enumerate(words):
        if word.startswith("--") or i == 0:
            name, equals, value = word.partition("=")
            words[i] = name.replace("_", "-") + equals + value
    return words


def _truth(text: str) -> bool:
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in known:
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return known[text.lower()]


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of connections: give 1 or more")
    return int(text)


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("s2uc", description="SciStream's user client.", allow_abbrev=False)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, command: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        text = command.__doc__
        added = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(command=command)
        return added

    _add_one_side(add("inbound-request", inbound_request), PRODUCER, receivers=True, mock=True)
    _add_one_side(add("prod-req", prod_req), PRODUCER, receivers=False, mock=True)
    outbound = add("outbound-request", outbound_request)
    outbound.add_argument("uid", metavar="UID", help="uid that the inbound request printed")
    outbound.add_argument("prod_lstn", metavar="PROD_LSTN", help="listeners that it printed, divided by commas")
    _add_one_side(outbound, CONSUMER, receivers=True, mock=False)
    _add_connect(add("connect", connect))
    for name, command, has_uid in (("release", release, True), ("status", status, True), ("ls", ls, False)):
        added = add(name, command)
        if has_uid:
            added.add_argument("uid", metavar="UID", help="uid of the session")
        added.add_argument(
            "--s2cs", action="append", metavar="HOST:PORT", help=f"gateway, may be repeated [{PRODUCER}]"
        )
        _add_trust(added)
    for name, command in (("login", login), ("logout", logout)):
        added = add(name, command)
        added.add_argument("--s2cs", metavar="HOST[:PORT]", help="gateway that the token is for")
        added.add_argument("--scope", help="control server's Globus client id: get the token from Globus")
        _add_token_file(added)
    check = add("check-auth", check_auth)
    check.add_argument("--ip", metavar="HOST[:PORT]", help="gateway to look for")
    check.add_argument("--scope", default=logins.GLOBUS_SCOPE, help="Globus scope to look for [%(default)s]")
    check.add_argument("--show-token", action="store_true", help="print the token itself")
    _add_token_file(check)
    return parser


def _add_one_side(parser: argparse.ArgumentParser, gateway: str, *, receivers: bool, mock: bool) -> None:
    parser.add_argument("--s2cs", default=gateway, metavar="HOST:PORT", help="control server [%(default)s]")
    parser.add_argument("--num-conn", type=_count, default=5, help="number of connections [%(default)s]")
    parser.add_argument("--rate", type=int, default=0, help="limit, where the proxy can [%(default)s: none]")
    parser.add_argument("--show-token", action="store_true", help="print the token, not -")
    if receivers:
        parser.add_argument("--remote-ip", default="localhost", help="host of the service [%(default)s]")
        parser.add_argument("--receiver-ports", default="5074,5075,5076,37000,47000", help="its ports [%(default)s]")
    if mock:
        parser.add_argument("--mock", type=_truth, nargs="?", const=True, help=f"use the uid {MOCK_UID}")
    _add_trust(parser)


def _add_connect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--producer-s2cs", default=PRODUCER, metavar="HOST:PORT", help="gateway [%(default)s]")
    parser.add_argument("--consumer-s2cs", default=CONSUMER, metavar="HOST:PORT", help="gateway [%(default)s]")
    parser.add_argument("--target", required=True, metavar="HOST:PORTS", help="service, ports divided by commas")
    parser.add_argument("--num-conn", type=_count, help="number of connections [as many as ports]")
    parser.add_argument("--rate", type=int, default=0, help="limit, where the proxies can [%(default)s: none]")
    parser.add_argument("--uid", help="name of the session [a random one]")
    parser.add_argument("--plaintext", action="store_true", help="do not encrypt between the gateways")
    parser.add_argument("--detach", action="store_true", help="return at once and leave the tunnel up")
    parser.add_argument("--no-probe", dest="probe", action="store_false", help="try no connection through the tunnel")
    _add_trust(parser)


def _add_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ca",
        "--server-cert",
        action="append",
        type=Path,
        metavar="FILE",
        help=f"authority or certificate of the gateway, may be repeated [{SERVER_CERT} if it exists, or the system's]",
    )
    parser.add_argument("--no-ssl", action="store_true", help="the control server speaks no TLS; no token is sent")
    parser.add_argument("--scope", default="", help="send the token that was stored for this Globus scope")
    _add_token_file(parser)


def _add_token_file(parser: argparse.ArgumentParser) -> None:
    text = f"file that holds the token [variable {TOKEN_VARIABLE}, or what `s2uc login` stored]"
    parser.add_argument("--token-file", type=Path, metavar="FILE", help=text)


if __name__ == "__main__":
    sys.exit(main())
