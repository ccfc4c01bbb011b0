"""Two gateways on this machine, for `ministream run --tunnel`: what lies between facilities, at hand to be tried.

Two control servers are started, one for each side, each with its own site (CA, certificate, token) in a folder that
goes when the run does. Then a tunnel is asked of both, as a user would, from the distributor's listeners to addresses
that the workers connect to. Between the two proxies everything is TLS 1.3.
"""

import asyncio
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ministream.base.children import Child, Children
from s2cs.client import Gateway, Tunnel
from s2cs.dataservers.kinds import proxy_kind
from s2cs.dataservers.rendering import find_program
from s2cs.dataservers.runner_process import ProcessRunner
from s2cs.dataservers.supervisor import Proxies
from s2cs.site import init_site

SIDES = {"p2cs": "producer", "c2cs": "consumer"}
PORTS = range(20_000, 30_000)
"""Where a gateway's block of ports is chosen from: below those that the system hands out by itself."""
BLOCK = 200
"""Ports of one gateway."""

HOST = "127.0.0.1"


def check_proxy(name: str) -> None:
    """Raise UserError if there is no such kind of proxy, or its program is not installed."""
    _, kind, runner = proxy_kind(name)
    if isinstance(runner, ProcessRunner):
        find_program(kind.program, kind.package)


class LocalTunnel:
    """The two control servers, and a tunnel through both; leaving the context releases it.

    Parameters
    ----------
    children
        Starts and ends the control servers.
    kind
        Type of the proxies: haproxy, nginx, stunnel or ssh.
    """

    def __init__(self, children: Children, kind: str) -> None:
        self._children, self._kind = children, kind
        self._stack = ExitStack()
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="ministream-tunnel-")))
        self._stack.callback(self._end_servers)
        self._tokens: dict[str, str] = {}
        self._gateways: list[Gateway] = []
        self._tunnel: Tunnel | None = None
        self.servers: list[Child] = []
        self._setup = 0.0
        first = random.randrange(PORTS.start, PORTS.stop - 2 * BLOCK, BLOCK)  # noqa: S311 - no secret
        self.servers = [
            self._serve(name, range(start, start + BLOCK))
            for name, start in zip(SIDES, (first, first + BLOCK), strict=True)
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def open(self, targets: Sequence[str], await_serving: Callable[[Child], Mapping[str, Any]]) -> list[str]:
        """Open the tunnel to `targets` (`host:port`, one connection each); return where its other end listens.

        `await_serving` waits for a control server's event `serving` and returns it.
        """
        self._gateways = [self._gateway(child, await_serving(child)) for child in self.servers]
        began = time.monotonic()
        self._tunnel = self._stack.enter_context(Tunnel(self._gateways[0], self._gateways[1], targets))
        self._setup = time.monotonic() - began
        return list(self._tunnel.listeners)

    def figures(self) -> dict[str, Any]:
        """Return what the summary tells of the tunnel."""
        return tunnel_figures(self._tunnel, self._gateways[1], self._setup) if self._tunnel else {}

    def _end_servers(self) -> None:
        """End the control servers while their folder is there, and the proxies of one that was killed.

        These outlive it, for one that will not come.
        """
        killed = [child for child in self.servers if child.failed]
        self._children.end(self.servers)
        for child in killed:
            proxies = Proxies(self._kind, self._folder / f"{child.name}-state" / "sessions")
            asyncio.run(proxies.end_strangers([]))

    def _serve(self, name: str, ports: range) -> Child:
        site, self._tokens[name] = init_site(self._folder / name, [HOST])
        options = {
            "listener-ip": HOST,
            "port": 0,
            "port-range": f"{ports.start}-{ports.stop - 1}",
            "type": self._kind,
            "server-crt": site.certificate,
            "server-key": site.key,
            "tokens": site.tokens,
            "state-dir": self._folder / f"{name}-state",
            "allow": f"{HOST}/32:1024-65535",
        }
        arguments = ["serve", *(f"--{option}={value}" for option, value in options.items())]
        return self._children.start(name, "s2cs", arguments, serves=True)

    def _gateway(self, child: Child, serving: Mapping[str, Any]) -> Gateway:
        ca = self._folder / child.name / "ca.crt"
        gateway = Gateway(
            str(serving["address"]), name=f"{SIDES[child.name]} gateway", ca=[ca], token=self._tokens[child.name]
        )
        return self._stack.enter_context(gateway)


def tunnel_figures(tunnel: Tunnel, gateway: Gateway, setup: float) -> dict[str, Any]:
    """Return what a report tells of a tunnel; `gateway` is either of its ends, `setup` the seconds that opening took.

    What flowed between the proxy's last report and the end of a short scan is not known: then nothing is said.
    """
    (session,) = gateway.list(tunnel.uid)
    return {
        "proxy": session.proxy,
        "encrypted": tunnel.encrypted,
        "setup_ms": 1000 * setup,
        "listeners": ", ".join(tunnel.listeners),
        "targets": ", ".join(tunnel.targets),
        "connections": len(tunnel.listeners),
        "bytes_in": session.bytes_in or None,
        "bytes_out": session.bytes_out or None,
        "restarts": session.restarts,
    }
