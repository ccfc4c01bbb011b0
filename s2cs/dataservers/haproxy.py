"""HAProxy: the default. Fast, strict, and it counts bytes and connections itself."""

import asyncio
import csv
import os
from typing import ClassVar

from s2cs.dataservers.limits import RUN
from s2cs.dataservers.rendering import render
from s2cs.dataservers.spec import ContainerNeeds, ProxySpec, Traffic


class Haproxy:
    """One process without a master, in the foreground."""

    name: ClassVar[str] = "haproxy"
    program: ClassVar[str] = "haproxy"
    package: ClassVar[str] = "haproxy"
    supports_rate: ClassVar[bool] = False

    def render(self, spec: ProxySpec) -> dict[str, str]:
        """Return `haproxy.cfg`; it takes the key from the file beside the certificate, `.key` in place of `.crt`."""
        if spec.tls and (spec.tls.certificate.suffix != ".crt" or spec.tls.key.stem != spec.tls.certificate.stem):
            raise ValueError(f"HAProxy pairs NAME.crt with NAME.key: {spec.tls.certificate.name}, {spec.tls.key.name}")
        threads = min(len(spec.pairs), len(os.sched_getaffinity(0)))
        return {"haproxy.cfg": render("haproxy.cfg.j2", spec=spec, tls=spec.tls, threads=threads)}

    def command(self, spec: ProxySpec) -> list[str]:
        """Return the command line."""
        return ["haproxy", "-db", "-C", str(spec.folder), "-f", "haproxy.cfg"]

    def container(self, spec: ProxySpec) -> ContainerNeeds:  # noqa: ARG002
        """Return that nothing else is needed."""
        return ContainerNeeds()

    async def traffic(self, spec: ProxySpec) -> Traffic | None:
        """Ask the process by its socket; None if it does not answer."""
        try:
            async with asyncio.timeout(1):
                table = await self._ask(spec, "show stat")
        except (OSError, TimeoutError):
            return None
        rows = [row for row in csv.DictReader(table.lstrip("# ").splitlines()) if row["svname"] == "FRONTEND"]
        return Traffic(*(sum(int(row[column]) for row in rows) for column in ("bin", "bout", "scur")))

    @staticmethod
    async def _ask(spec: ProxySpec, question: str) -> str:
        folder = os.open(spec.folder / RUN, os.O_PATH)  # a socket's path may have 107 letters only, a folder's more
        try:
            reader, writer = await asyncio.open_unix_connection(f"/proc/self/fd/{folder}/stats.sock")
        finally:
            os.close(folder)
        try:
            writer.write(f"{question}\n".encode())
            return (await reader.read()).decode()
        finally:
            writer.close()
            await writer.wait_closed()
