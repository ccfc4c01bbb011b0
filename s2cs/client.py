"""The user's side: calls to a control server, and a tunnel through two of them.

A tunnel is one session on each gateway under the same uid. Both are asked for at once, then each is told the other's
listeners and certificate: two round trips. An existing SciStream server takes part, too. It does not know that a
request may greet at once, so it is greeted by `hello` when its answer does not come; and it has no certificates, so
that the way between the gateways is plaintext, which the caller must have asked for.
"""

import contextlib
import selectors
import socket
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent import futures
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import grpc

from ministream.base.errors import UserError
from ministream.base.lifecycle import SLICE, StopFlag, Stopped
from ministream.base.owner import Owner
from s2cs.addresses import parse_address
from s2cs.proto import scistream_pb2 as pb
from s2cs.proto import scistream_pb2_grpc as rpc

PROD, CONS = "PROD", "CONS"
SIDES = {PROD: "producer", CONS: "consumer"}

CALL_TIMEOUT = 30.0
"""Seconds that a server has for a call: a container may have to start."""
RELEASE_TIMEOUT = 10.0
HELLO_TIMEOUT = 190.0
"""Seconds that the application has for its own hello: the server's 180, and time for the server to say so."""
HELLO_AFTER = 0.25
"""Seconds after which a request that greeted, but is not answered, is taken for one that waits for a hello."""
RENEWALS = 3
"""Renewals in the time of one lease: two may be lost."""
PROBE_WINDOW = 0.05
"""Seconds in which a proxy without a service behind it closes the connection that it has just accepted."""

_CHANNEL = (("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 1000))
"""A server that is back is found within a second: with gRPC's growing pauses a lease might run out first."""

T = TypeVar("T")


class GatewayError(UserError):
    """A control server has refused, or cannot be reached.

    `reached` is false where no answer came; `undone` says that the server has surely begun nothing for the call.
    """

    def __init__(self, text: str, *, reached: bool = True, undone: bool = True) -> None:
        super().__init__(text)
        self.reached, self.undone = reached, undone


class UnknownCallError(GatewayError):
    """The server is an existing SciStream server, which lacks the call."""


class Gateway(Owner):
    """One control server.

    Parameters
    ----------
    address
        `host:port`, by a name that the server's certificate holds.
    name
        What errors call it, beside its address: "producer gateway".
    ca
        PEM files of the authorities to trust (a self-signed server's own certificate counts); none: the system's.
    token
        Sent with every call, and never without TLS.
    tls
        Off only for a server that was started without TLS.
    stop
        A call that waits while this is set raises `Stopped` (`release` finishes all the same).
    """

    def __init__(
        self,
        address: str,
        *,
        name: str = "gateway",
        ca: Sequence[Path] = (),
        token: str = "",
        tls: bool = True,
        stop: StopFlag | None = None,
    ) -> None:
        self.address = str(parse_address(address))
        self.name = f"{name} {self.address}"
        if token and not tls:
            raise UserError(f"{self.name}: a token is sent over TLS only; leave out the token or --no-ssl")
        self._ca = ca
        self._stop = stop
        self._metadata = (("authorization", token),) if token else ()
        self._channel = _open_channel(self.address, ca, tls=tls)
        control, gateway = rpc.ControlStub(self._channel), rpc.GatewayStub(self._channel)  # type: ignore[no-untyped-call]
        self._methods = {name: getattr(control, name) for name in ("req", "update", "release", "hello")}
        self._methods |= {name: getattr(gateway, name) for name in ("list", "renew")}

    def close(self) -> None:
        """Close the connection; what is under way is given up."""
        self._channel.close()

    def req(
        self,
        uid: str,
        role: str,
        *,
        connections: int = 1,
        rate: int = 0,
        encrypted: bool = False,
        targets: Sequence[str] | None = None,
    ) -> pb.Response:
        """Ask for a session's listeners.

        With `targets` (for the consumer's side: an empty list) the session is greeted at once; without, the answer
        waits for the application's own hello.
        """
        greeted = targets is not None
        request = pb.Request(
            uid=uid,
            role=role,
            num_conn=connections,
            rate=rate,
            encrypted=encrypted,
            greeted=greeted,
            targets=targets or (),
        )
        call = self._begin("req", request, CALL_TIMEOUT if greeted else HELLO_TIMEOUT)
        if greeted:
            self._greet(call, uid, role, targets or ())
        return cast("pb.Response", self._wait(call, "req", stop=self._stop))

    def hello(self, uid: str, role: str, targets: Sequence[str] = ()) -> pb.AppResponse:
        """Greet, as an application does: for PROD with the addresses of its service."""
        request = pb.Hello(uid=uid, role=role, prod_listeners=targets)
        return cast("pb.AppResponse", self._call("hello", request))

    def update(self, uid: str, role: str, targets: Sequence[str], peer_certificate: str = "") -> pb.Response:
        """Name the targets (and the other gateway's certificate), and so open the proxy."""
        request = pb.UpdateTargets(uid=uid, role=role, remote_listeners=targets, peer_certificate=peer_certificate)
        return cast("pb.Response", self._call("update", request))

    def release(self, uid: str) -> None:
        """End a session; finishes even if a stop is asked for."""
        call = self._begin("release", pb.Release(uid=uid), RELEASE_TIMEOUT)
        self._wait(call, "release", stop=None)

    def list(self, uid: str = "") -> Sequence[pb.SessionState]:
        """Return the sessions that the caller may see, or only those of one uid."""
        return cast("pb.ListReply", self._call("list", pb.ListRequest(uid=uid))).sessions

    def renew(self, uid: str) -> float:
        """Begin the lease of a session anew; return its seconds (0: this server gives none)."""
        try:
            return cast("pb.RenewReply", self._call("renew", pb.RenewRequest(uid=uid))).lease_seconds
        except UnknownCallError:
            return 0.0

    def _call(self, name: str, request: object) -> object:
        return self._wait(self._begin(name, request, CALL_TIMEOUT), name, stop=self._stop)

    def _begin(self, name: str, request: object, timeout: float) -> Any:
        return self._methods[name].future(request, timeout=timeout, metadata=self._metadata)

    def _greet(self, call: Any, uid: str, role: str, targets: Sequence[str]) -> None:
        """Say hello until `call` is answered: one that comes before its request is failed by an old server."""
        while not (self._stop or _done_within(call, HELLO_AFTER)):
            with contextlib.suppress(GatewayError):  # whatever is wrong, the request's own answer will say it
                self.hello(uid, role, targets)
                return

    def _wait(self, call: Any, what: str, *, stop: StopFlag | None = None) -> object:
        try:
            while not _done_within(call, SLICE):
                if stop is not None:
                    stop.raise_if_set()
            return call.result()
        except grpc.RpcError as error:
            raise self._explain(error, what) from None
        except grpc.FutureCancelledError:
            raise GatewayError(f"{self.name}: {what} was given up", undone=False) from None
        finally:
            call.cancel()  # of no effect on a call that has ended

    def _explain(self, error: Any, what: str) -> GatewayError:
        details = " ".join((error.details() or "").removeprefix("Exception calling application: ").split())
        match error.code():
            case grpc.StatusCode.UNAVAILABLE:
                met = not details.startswith(("failed to connect", "DNS"))
                why = f"does not serve now: {details}" if met else self._why_not_met(details)
                return GatewayError(f"{self.name} {why}", reached=False, undone=not met)
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                return GatewayError(
                    f"{self.name} did not answer {what} in time: {details}", reached=False, undone=False
                )
            case grpc.StatusCode.UNIMPLEMENTED:
                return UnknownCallError(
                    f"{self.name} has no call {what}: it is an existing SciStream server, not one of ours"
                )
            case grpc.StatusCode.UNAUTHENTICATED:
                return GatewayError(f"{self.name} does not know you: {details}; log in with `s2uc login`")
            case _:
                return GatewayError(f"{self.name} refused {what}: {details}")

    def _why_not_met(self, details: str) -> str:
        if "CERTIFICATE_VERIFY_FAILED" in details:
            trusted = ", ".join(map(str, self._ca)) or "the system's authorities"
            return f"shows a certificate that {trusted} did not sign; name its authority's file with --ca"
        if "Hostname Verification" in details or "not in peer certificate" in details:
            return "shows a certificate for other names; address it by one of those"
        if "WRONG_VERSION_NUMBER" in details:
            return "does not speak TLS; if that is meant to be so, give --no-ssl"
        return f"cannot be reached: {details.rpartition(': ')[2]}"


class Tunnel:
    """A way from listeners on the consumer's gateway through the producer's gateway to `targets`.

    `with Tunnel(...) as tunnel:` opens it, renews its leases, and releases it. `open()` alone leaves it up until
    somebody calls `release()`: a lease begins when it is first renewed.

    Parameters
    ----------
    producer, consumer
        The two gateways; their callers close them.
    targets
        `host:port` of the service, as the producer's gateway reaches it; repeated in turn up to `connections`.
    connections
        Number of listeners (one port each); default: as many as targets.
    encrypted
        TLS between the gateways, with certificates of this session alone.
    rate
        Limit in bytes a second, where the proxies can; 0: none.
    uid
        Name of the session; default: a random one.
    """

    def __init__(
        self,
        producer: Gateway,
        consumer: Gateway,
        targets: Sequence[str],
        *,
        connections: int | None = None,
        encrypted: bool = True,
        rate: int = 0,
        uid: str | None = None,
    ) -> None:
        if not targets:
            raise UserError("a tunnel needs a target: give HOST:PORT of the service")
        self.uid = uid or str(uuid.uuid4())
        self.targets = tuple(str(parse_address(target)) for target in targets)
        self.connections = connections or len(self.targets)
        self.encrypted, self.rate = encrypted, rate
        self.listeners: tuple[str, ...] = ()
        """Where the application connects: on the consumer's gateway."""
        self.warnings: tuple[str, ...] = ()
        """What the servers would have the user know."""
        self.lease = 0.0
        """Seconds within which the tunnel is renewed; 0: not yet, or the servers give no lease."""
        self.lost = ""
        """Why a tunnel that was held is no more."""
        self._gateways = {PROD: producer, CONS: consumer}
        self._begun: set[str] = set()
        self._over = threading.Event()
        self._keeper: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.open()
        self._over.clear()
        self._keeper = threading.Thread(target=self._keep, name=f"lease {self.uid}", daemon=True)
        self._keeper.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self._over.set()
        if self._keeper is not None:
            self._keeper.join()
        with contextlib.nullcontext() if error is None else contextlib.suppress(GatewayError):
            self.release()

    def open(self) -> None:
        """Open both sides, or neither.

        Raises
        ------
        GatewayError
            Saying which side refused, and why.
        """
        try:
            answers = self._on_both(self._request)
            certificates = {role: self._certificate(role, answer) for role, answer in answers.items()}
            onward = {PROD: self.targets, CONS: tuple(answers[PROD].listeners)}
            peers = {PROD: certificates[CONS], CONS: certificates[PROD]}
            updates = self._on_both(lambda role: self._gateways[role].update(self.uid, role, onward[role], peers[role]))
        except BaseException:
            with contextlib.suppress(GatewayError):  # what a server cannot be told, its time-out does
                self.release()
            raise
        self.listeners = tuple(answers[CONS].listeners)
        said = [(role, text) for found in (answers, updates) for role, r in found.items() for text in r.warnings]
        self.warnings = tuple(dict.fromkeys(f"{self._gateways[role].name}: {text}" for role, text in said))

    def release(self) -> None:
        """End both sides.

        Raises
        ------
        GatewayError
            Naming the side that could not be released; the other one is.
        """
        begun, self._begun = self._begun, set()
        self._on_both(lambda role: self._gateways[role].release(self.uid), begun)

    def renew(self) -> float:
        """Begin the leases of both sides anew; return the seconds of the shorter one (0: neither gives one)."""
        leases = self._on_both(lambda role: self._gateways[role].renew(self.uid))
        return min((lease for lease in leases.values() if lease), default=0.0)

    def hold(self, stop: StopFlag) -> None:
        """Wait in a `with` block until a stop is asked for.

        Raises
        ------
        GatewayError
            If the tunnel is lost before.
        Stopped
            With the reason.
        """
        while not self._over.wait(SLICE):
            stop.raise_if_set()
        raise GatewayError(f"the tunnel {self.uid} is lost: {self.lost}")

    def probe(self) -> tuple[str, ...]:
        """Try one connection through each listener; return a sentence for each that does not carry."""
        return probe(self.listeners)

    def _request(self, role: str) -> pb.Response:
        self._begun.add(role)
        targets = self.targets if role == PROD else ()
        try:
            return self._gateways[role].req(
                self.uid,
                role,
                connections=self.connections,
                rate=self.rate,
                encrypted=self.encrypted,
                targets=targets,
            )
        except GatewayError as error:
            if error.undone:  # above all: never release another session of this uid, for which it was refused
                self._begun.discard(role)
            raise

    def _certificate(self, role: str, answer: pb.Response) -> str:
        if self.encrypted and not answer.certificate:
            raise GatewayError(
                f"{self._gateways[role].name} gave no certificate, so the way between the gateways cannot be encrypted "
                "(existing SciStream servers have none); give --plaintext if everybody may read what passes there"
            )
        return answer.certificate if self.encrypted else ""

    def _on_both(self, work: Callable[[str], T], roles: set[str] | None = None) -> dict[str, T]:
        """Do `work` for both roles at the same time."""
        chosen = [role for role in SIDES if roles is None or role in roles]
        with futures.ThreadPoolExecutor(len(SIDES), thread_name_prefix="tunnel") as pool:
            calls = {role: pool.submit(work, role) for role in chosen}
        errors = [error for call in calls.values() if (error := call.exception()) is not None]
        refusals = [error for error in errors if isinstance(error, GatewayError)]
        if errors and len(refusals) == len(errors):
            reached, undone = any(e.reached for e in refusals), all(e.undone for e in refusals)
            raise GatewayError("; ".join(map(str, refusals)), reached=reached, undone=undone)
        for error in errors:
            raise error
        return {role: call.result() for role, call in calls.items()}

    def _keep(self) -> None:
        """Renew until the tunnel is over; a gateway that is away for a moment (a restart) is forgiven."""
        renewed, pause = time.monotonic(), 0.0
        while not self._over.wait(pause):
            try:
                self.lease = self.renew()
                renewed = time.monotonic()
                if not self.lease:
                    return
            except GatewayError as error:
                if error.reached or time.monotonic() - renewed > self.lease:
                    self.lost = str(error)
                    self._over.set()
            except Stopped:
                return  # whoever asked for it sees to the release
            pause = self.lease / RENEWALS


def probe(listeners: Sequence[str], window: float = PROBE_WINDOW) -> tuple[str, ...]:
    """Open a connection to each of `listeners`; return a sentence for each that does not carry.

    A proxy accepts before it has reached what lies behind it, and closes when it cannot. So a connection carries when
    the first bytes arrive, or when it is still open after `window` seconds: many services wait for their client to
    speak first.
    """
    complaints = []
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        for listener in listeners:
            try:
                address = parse_address(listener)
                connection = stack.enter_context(socket.create_connection((address.host, address.port), timeout=2))
                selector.register(connection, selectors.EVENT_READ, listener)
            except OSError as error:
                complaints.append(f"listener {listener} cannot be reached from here: {error.strerror or error}")
        deadline = time.monotonic() + window
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                selector.unregister(key.fileobj)
                if not _still_open(cast("socket.socket", key.fileobj)):
                    complaints.append(f"the service behind listener {key.data} does not answer yet")
    return tuple(complaints)


def _still_open(connection: socket.socket) -> bool:
    try:
        return bool(connection.recv(65536))  # all of it: closing with bytes unread would reset the service
    except OSError:
        return False


def _done_within(call: Any, seconds: float) -> bool:
    try:
        call.exception(seconds)
    except grpc.FutureTimeoutError:
        return False
    except grpc.FutureCancelledError:
        return True
    return True


def _open_channel(address: str, ca: Sequence[Path], *, tls: bool) -> grpc.Channel:
    if not tls:
        return grpc.insecure_channel(address, _CHANNEL)
    try:
        roots = b"\n".join(path.read_bytes() for path in ca) or None
    except OSError as error:
        raise UserError(f"certificate file {error.filename}: {error.strerror}; name the gateway's by --ca") from error
    if roots is not None and b"-----BEGIN CERTIFICATE-----" not in roots:
        raise UserError(f"{', '.join(map(str, ca))}: no PEM certificate in it; name the gateway's by --ca")
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(root_certificates=roots), _CHANNEL)
