"""The control server's life: take the state, listen, bring sessions back, watch them, and end cleanly.

The first line that says "serving" comes when sessions are restored and the port accepts calls. SIGTERM drains: no new
sessions, some time for the live ones to be released, then the rest is ended. SIGINT, or a second signal, ends them at
once. Only a server that is killed leaves its proxies running, for the next one to take back.
"""

import asyncio
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer  # `health.aio` to its users, but its stubs know neither

from ministream.base import log
from ministream.base.errors import UserError
from ministream.base.lifecycle import SLICE, StopFlag, Stopped
from s2cs.addresses import Address
from s2cs.auth import Anonymous, Authenticator, Chain
from s2cs.auth.tokens import TokenFile
from s2cs.credentials import server_credentials
from s2cs.dataservers.supervisor import Proxies
from s2cs.files import make_private_folder
from s2cs.gateway import Gateway
from s2cs.metrics import Metrics
from s2cs.policy import Policy, default_policy, load_policy
from s2cs.ports import PortPool
from s2cs.proto import scistream_pb2_grpc as rpc
from s2cs.service import ControlService, GatewayService
from s2cs.sessions import Sessions
from s2cs.settings import ServerSettings, is_unspecified, own_address
from s2cs.store import SessionStore
from s2cs.terms import Terms

SWEEP, TRAFFIC = 0.5, 5.0
"""Seconds between two looks for sessions whose time is over, and between two looks at their traffic."""

STOOD_STILL = 10.0
"""Seconds by which the watch may wake late; after more, the server, its machine or its clock has been stopped."""

GRACE = 2.0
"""Seconds that calls have to finish when the server ends."""

SERVICES = ("", "scistream.Control", "scistream.Gateway")

_OPTIONS = (
    ("grpc.so_reuseport", 0),  # a second server on the port is an error, not a rival
    ("grpc.max_receive_message_length", 64 << 10),  # a request with 256 long names and a certificate
    ("grpc.max_metadata_size", 16 << 10),  # a token of an issuer that says much about its people
    ("grpc.max_concurrent_streams", 1000),
    ("grpc.keepalive_time_ms", 20_000),  # a client that vanished without a word ends its waiting request
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
)


class ControlServer:
    """A control server as an asynchronous context: it serves inside the block, and has ended all sessions after it."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._server = grpc.aio.server(options=_OPTIONS)
        self._health = HealthServicer()
        self._metrics = Metrics()
        self._scrapes: asyncio.Server | None = None
        self._watch: asyncio.Task[None] | None = None
        self.port = settings.port
        """Port of the control protocol, once it serves."""
        self.metrics_port = settings.metrics_port

    async def __aenter__(self) -> Self:
        settings = self._settings
        make_private_folder(settings.state_folder)
        self._store = SessionStore(settings.state_folder / "sessions.db")
        try:
            self.port = self._listen()
            self.gateway = self._make_gateway()
            self._register(_authenticator(settings))
            await self.gateway.restore()
            await self._serve_metrics()
            await self._server.start()
        except BaseException:
            await self._server.stop(None)
            self._store.close()
            raise
        self._watch = asyncio.create_task(self._keep_watch())
        await self._tell_health(health_pb2.HealthCheckResponse.SERVING)
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self.gateway.drain()
        if self._watch:
            self._watch.cancel()
        await self.gateway.close()
        if self._scrapes:
            self._scrapes.close()
        await self._server.stop(GRACE)
        self._store.close()

    async def wait(self, flag: StopFlag) -> str:
        """Serve until `flag` is set and return why; a watch that fails ends the server with its error."""
        while True:
            try:
                flag.raise_if_set()
            except Stopped as reason:
                return str(reason)
            if self._watch and self._watch.done():
                self._watch.result()
            await asyncio.sleep(SLICE)

    async def drain(self, seconds: float, impatience: StopFlag) -> None:
        """Take no new sessions, and wait until the live ones were released, `seconds` passed or a signal came."""
        self.gateway.drain()
        await self._tell_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        end = time.monotonic() + seconds
        while not (self.gateway.at_rest or impatience or time.monotonic() >= end):
            await asyncio.sleep(SLICE)

    def _listen(self) -> int:
        address = str(Address(self._settings.listener_ip, self._settings.port))
        try:
            if not self._settings.ssl:
                return self._server.add_insecure_port(address)
            files = Path(self._settings.server_crt), Path(self._settings.server_key)
            return self._server.add_secure_port(address, server_credentials(*files))
        except RuntimeError as error:
            raise UserError(f"cannot listen on {address}: give an address of this host and a free --port") from error

    def _make_gateway(self) -> Gateway:
        settings = self._settings
        advertise = advertised_host(settings)
        terms = Terms(
            folder=settings.state_folder / "sessions",
            host=listening_host(settings, advertise),
            advertise=advertise,
            plaintext=settings.plaintext,
            accept_any_rate=settings.accept_any_rate,
            request_timeout=settings.request_timeout,
            lease=settings.lease,
            idle=settings.idle,
        )
        make_private_folder(terms.folder)
        return Gateway(
            terms,
            sessions=Sessions(),
            ports=PortPool(settings.ports, terms.host),
            store=self._store,
            policy=_policy(settings, {self.port} | ({settings.metrics_port} if settings.metrics_port else set())),
            proxies=Proxies(settings.type, terms.folder, settings.image_by_kind),
            observe_setup=self._metrics.observe_setup,
        )

    def _register(self, authenticator: Authenticator) -> None:
        control, gateway = ControlService(self.gateway, authenticator), GatewayService(self.gateway, authenticator)
        rpc.add_ControlServicer_to_server(control, self._server)  # type: ignore[no-untyped-call]
        rpc.add_GatewayServicer_to_server(gateway, self._server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    async def _serve_metrics(self) -> None:
        host, port = self._settings.metrics_ip, self._settings.metrics_port
        if port is None:
            return
        try:
            self._scrapes = await self._metrics.serve(self.gateway, host, port)
        except OSError as error:
            raise UserError(f"cannot serve /metrics on {host}, port {port}: {error.strerror}") from error
        self.metrics_port = self._scrapes.sockets[0].getsockname()[1]

    async def _tell_health(self, status: "health_pb2.HealthCheckResponse.ServingStatus.ValueType") -> None:
        for service in SERVICES:
            await self._health.set(service, status)

    async def _keep_watch(self) -> None:
        next_look = 0.0
        while True:
            await self.gateway.sweep()
            if time.monotonic() >= next_look:
                await self.gateway.note_traffic()
                next_look = time.monotonic() + min(TRAFFIC, self._settings.idle / 4 or TRAFFIC)
            asleep = time.time()  # the work itself may take long: containers end slowly
            await asyncio.sleep(SWEEP)
            if (late := time.time() - asleep - SWEEP) > STOOD_STILL:
                self.gateway.forgive_pause(late)


def main(settings: ServerSettings) -> int:
    """Serve until a signal says otherwise; return the exit code."""
    if settings.verbose:
        log.configure("s2cs", level="debug", style=settings.log_format)
    return asyncio.run(_serve(settings))


async def _serve(settings: ServerSettings) -> int:
    flag = StopFlag().install()
    _warn(settings)
    async with ControlServer(settings) as server:
        log.get_logger().info(
            "serving",
            address=str(Address(settings.listener_ip, server.port)),
            advertised=advertised_host(settings),
            ports=settings.port_range,
            proxy=settings.type,
            metrics=server.metrics_port or "-",
            state=str(settings.state_folder),
        )
        reason = await server.wait(flag)
        log.get_logger().info("ending", reason=reason)
        if reason == "SIGTERM":
            await server.drain(settings.drain, StopFlag().install())
    log.get_logger().info("ended")
    return 0


def _warn(settings: ServerSettings) -> None:
    warn = log.get_logger().warning
    if settings.insecure_no_auth:
        warn("everybody who reaches this port may open tunnels (--insecure-no-auth)")
    if settings.plaintext:
        warn("tunnels may be opened without encryption (--plaintext): whoever can listen on the way reads their data")
    if not settings.ssl:
        warn("the control protocol is not encrypted (--no-ssl)")
    if not (settings.allow or settings.policy):
        warn("no target is allowed as yet: name some by --allow NETWORK:PORTS, or rules by --policy FILE")
    if is_unspecified(settings.listener_ip) and not settings.advertise:
        warn("guessed the address that clients are told; name it by --advertise", address=own_address())


def advertised_host(settings: ServerSettings) -> str:
    """Return what clients are told to connect to: never "every address"."""
    if settings.advertise:
        return settings.advertise
    return own_address() if is_unspecified(settings.listener_ip) else settings.listener_ip


def listening_host(settings: ServerSettings, advertised: str) -> str:
    """Return where proxies listen: where clients are told to connect if that is on this host, and not everywhere."""
    if not is_unspecified(settings.listener_ip):
        return settings.listener_ip
    family = socket.AF_INET6 if ":" in advertised else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((advertised, 0))
        except OSError:  # a name, or an address that a router translates
            return settings.listener_ip
    return advertised


def _policy(settings: ServerSettings, own_ports: set[int]) -> Policy:
    if settings.policy and settings.allow:
        raise UserError("--policy and --allow exclude each other: write the networks into the policy file")
    if settings.policy:
        return load_policy(Path(settings.policy), own_ports)
    return default_policy(settings.allow, own_ports)


def _authenticator(settings: ServerSettings) -> Authenticator:
    if settings.insecure_no_auth:
        return Anonymous()
    chain: list[Authenticator] = []
    if settings.tokens or settings.token_file.exists():
        chain.append(TokenFile(settings.token_file))
    if settings.oidc_issuer:
        from s2cs.auth.oidc import OidcAuthenticator

        chain.append(OidcAuthenticator(settings.oidc_issuer, settings.oidc_audience))
    if settings.client_secret:
        from s2cs.auth.globus import GlobusAuthenticator

        chain.append(GlobusAuthenticator(settings.client_id, settings.client_secret))
    return Chain(chain)
