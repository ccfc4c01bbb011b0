"""What keeps proxies running: they are started, watched, started again when they die, adopted, and ended for good."""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from ministream.base import log
from ministream.base.errors import UserError
from s2cs.dataservers import proc
from s2cs.dataservers.kinds import DOCKER, proxy_kind
from s2cs.dataservers.limits import RUN
from s2cs.dataservers.meter import Meter
from s2cs.dataservers.runner_docker import end_containers
from s2cs.dataservers.runner_process import end_members
from s2cs.dataservers.spec import Handle, ProxyKind, ProxySpec, Runner, Traffic
from s2cs.files import PRIVATE_FOLDER
from s2cs.store import ProcessRecord
from s2cs.trust import write_private

OnRestart = Callable[[int, str], None]
OnFailed = Callable[[str], None]

STARTING = 10.0
"""Seconds in which a proxy's listeners must stand (they need 0.02)."""
QUICK_DEATHS, QUICK = 5, 10.0
"""So many deaths in a row, each within so many seconds of the start, and the proxy is given up."""


class Proxies:
    """The proxies of one gateway: all of the kind that the operator chose, each in a folder below `folder`.

    Parameters
    ----------
    name
        The kind, as `proxy_kind` knows it.
    folder
        Holds the sessions' folders, and nothing else.
    images
        Docker images by kind, where the usual one is not wanted.

    Raises
    ------
    UserError
        If there is no such kind.
    """

    def __init__(self, name: str, folder: Path, images: Mapping[str, str] | None = None) -> None:
        self.name, kind, _ = proxy_kind(name, images)
        self.supports_rate = kind.supports_rate
        self._folder, self._images = folder, images

    async def start(self, kind: str, spec: ProxySpec, on_restart: OnRestart, on_failed: OnFailed) -> "Proxy":
        """Start one; return when its listeners accept.

        Raises
        ------
        UserError
            If it doesn't start, with the program's own words.
        """
        _, chosen, runner = proxy_kind(kind, self._images)
        return await Proxy.start(chosen, runner, spec, on_restart, on_failed)

    async def adopt(
        self, kind: str, spec: ProxySpec, record: ProcessRecord, on_restart: OnRestart, on_failed: OnFailed
    ) -> "Proxy | None":
        """Take charge of one that an earlier server started; None if it is gone."""
        _, chosen, runner = proxy_kind(kind, self._images)
        return await Proxy.adopt(chosen, runner, spec, record, on_restart, on_failed)

    async def end_strangers(self, owned: Iterable[ProcessRecord]) -> None:
        """End the proxies of this gateway that are not among `owned`."""
        owned = list(owned)
        members = proc.members(self._folder)
        spare = frozenset(members[record.pid] for record in owned if record.pid in members)
        strangers: list[object] = [*await end_members(self._folder, spare)]
        containers = {record.container for record in owned} - {""}
        if containers or self.name.startswith(DOCKER):  # else no engine is asked: few gateways have one
            strangers += await end_containers(self._folder, spare=containers)
        if strangers:
            log.get_logger().warning("proxies without a session ended", processes=strangers)


class Proxy:
    """One session's proxy, from its start or adoption to its end; made by `start` and `adopt`."""

    def __init__(self, kind: ProxyKind, runner: Runner, spec: ProxySpec, handle: Handle) -> None:
        self._kind, self._runner, self._spec, self._handle = kind, runner, spec, handle
        self._meter = Meter(spec.ports)
        self._watch: asyncio.Task[None] | None = None
        self.restarts = 0

    @classmethod
    async def start(
        cls, kind: ProxyKind, runner: Runner, spec: ProxySpec, on_restart: OnRestart, on_failed: OnFailed
    ) -> "Proxy":
        """Start a proxy; return when its listeners accept.

        Raises
        ------
        UserError
            If it doesn't start, with the program's own words.
        """
        if spec.rate and not kind.supports_rate:
            raise UserError(f"proxy {kind.name} cannot keep a rate: choose nginx, or rate 0 for no limit")
        (spec.folder / RUN).mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
        for name, content in kind.render(spec).items():
            write_private(spec.folder / name, content.encode())
        proxy = cls(kind, runner, spec, await _begin(kind, runner, spec))
        proxy._supervise(on_restart, on_failed)
        return proxy

    @classmethod
    async def adopt(
        cls,
        kind: ProxyKind,
        runner: Runner,
        spec: ProxySpec,
        record: ProcessRecord,
        on_restart: OnRestart,
        on_failed: OnFailed,
    ) -> "Proxy | None":
        """Take charge of a proxy that an earlier control server started; None if it is gone."""
        handle = await runner.adopt(spec, record)
        if handle is None:
            return None
        proxy = cls(kind, runner, spec, handle)
        proxy._supervise(on_restart, on_failed)
        return proxy

    @property
    def record(self) -> ProcessRecord:
        """What is needed to find it after a restart of the control server."""
        return self._handle.record

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self._handle.alive()

    async def traffic(self) -> Traffic | None:
        """Return what went through it; None where neither the program nor the kernel tells.

        Each can only have missed something, the program the last seconds and what was before its own restart, the
        kernel what was before this control server's: the larger is the truer.
        """
        told = [count for count in (await self._kind.traffic(self._spec), self._meter.read()) if count]
        return max(told, key=lambda count: count.bytes_in + count.bytes_out, default=None)

    async def stop(self) -> None:
        """End it; return when its processes are gone and its ports free."""
        await self.leave()
        await self._handle.stop()

    async def leave(self) -> None:
        """Watch it no longer; it runs on, for another control server to adopt."""
        if self._watch:
            self._watch.cancel()
            with suppress(asyncio.CancelledError):
                await self._watch
        self._meter.close()

    def _supervise(self, on_restart: OnRestart, on_failed: OnFailed) -> None:
        self._watch = asyncio.create_task(self._keep(on_restart, on_failed))

    async def _keep(self, on_restart: OnRestart, on_failed: OnFailed) -> None:
        """Start it again whenever it ends, until that has happened too often too fast."""
        deaths = 0
        while True:
            began = time.monotonic()
            reason = _explain(self._kind, self._handle, await self._handle.wait())
            deaths = deaths + 1 if time.monotonic() - began < QUICK else 1
            if deaths >= QUICK_DEATHS:
                return on_failed(f"{reason} ({deaths} times in a row)")
            try:
                self._handle = await _begin(self._kind, self._runner, self._spec)
            except UserError as error:
                return on_failed(str(error))
            self.restarts += 1
            on_restart(self.restarts, reason)


async def _begin(kind: ProxyKind, runner: Runner, spec: ProxySpec) -> Handle:
    """Start the program and wait until its listeners stand; whatever goes wrong, nothing of it remains."""
    handle = await runner.start(kind, spec)
    ending = asyncio.create_task(handle.wait())
    try:
        async with asyncio.timeout(STARTING):
            while not spec.ports <= handle.listening():
                if ending.done():
                    raise UserError(_explain(kind, handle, ending.result()))
                await asyncio.sleep(0.003)
    except BaseException as error:
        await handle.stop()
        if isinstance(error, TimeoutError):
            raise UserError(f"proxy {kind.name} does not listen after {STARTING:g} s: {handle.last_words()}") from error
        raise
    finally:
        ending.cancel()
    return handle


def _explain(kind: ProxyKind, handle: Handle, ending: str) -> str:
    words = handle.last_words()
    return f"proxy {kind.name}: {ending}" + (f": {words}" if words else "")
