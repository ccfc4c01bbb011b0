"""nginx with its stream module: the kind that can hold a session to a rate."""

import subprocess
from functools import cache
from pathlib import Path
from typing import ClassVar

from s2cs.dataservers.rendering import find_program, render
from s2cs.dataservers.spec import ContainerNeeds, ProxySpec, Traffic
from s2cs.trust import SESSION_NAME


class Nginx:
    """One process that is master and worker at once: one to start, one to end, and none left if it is killed.

    A rate is shared out evenly: as many connections as the session has listeners, each with its part. More are
    turned away, for nginx limits connections and not their sum.
    """

    name: ClassVar[str] = "nginx"
    program: ClassVar[str] = "nginx"
    package: ClassVar[str] = "nginx libnginx-mod-stream"
    supports_rate: ClassVar[bool] = True

    def __init__(self, *, in_container: bool = False) -> None:
        self._in_container = in_container  # the official image has the stream module built in

    def render(self, spec: ProxySpec) -> dict[str, str]:
        """Return `nginx.conf`."""
        module = None if self._in_container else _stream_module(find_program(self.program, self.package))
        rate = -(-spec.rate // len(spec.pairs))
        values = {"spec": spec, "tls": spec.tls, "module": module, "rate": rate, "name": SESSION_NAME}
        return {"nginx.conf": render("nginx.conf.j2", **values)}

    def command(self, spec: ProxySpec) -> list[str]:
        """Return the command line; what it says before it has read the file goes to standard error."""
        folder = str(spec.folder)
        return ["nginx", "-e", "stderr", "-p", folder, "-c", f"{folder}/nginx.conf"]

    def container(self, spec: ProxySpec) -> ContainerNeeds:  # noqa: ARG002
        """Return that nothing else is needed."""
        return ContainerNeeds()

    async def traffic(self, spec: ProxySpec) -> Traffic | None:  # noqa: ARG002
        """Return None: without its commercial module nginx counts a stream only when it ends."""
        return None


@cache
def _stream_module(program: str) -> Path | None:
    """Return the file of the stream module where this nginx loads it at run time, None where it is built in."""
    said = subprocess.run([program, "-V"], capture_output=True, text=True, check=False).stderr  # noqa: S603
    if "--with-stream=dynamic" not in said:
        return None
    folder = next((a.partition("=")[2] for a in said.split() if a.startswith("--modules-path=")), "modules")
    return Path(folder) / "ngx_stream_module.so"
