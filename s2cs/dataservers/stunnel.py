"""stunnel: a TLS wrapper, a thread for each connection. It cannot do without TLS."""

from typing import ClassVar

from ministream.base.errors import UserError
from s2cs.dataservers.rendering import render
from s2cs.dataservers.spec import ContainerNeeds, ProxySpec, Traffic


class Stunnel:
    """One process in the foreground."""

    name: ClassVar[str] = "stunnel"
    program: ClassVar[str] = "stunnel"
    package: ClassVar[str] = "stunnel4"
    supports_rate: ClassVar[bool] = False

    def render(self, spec: ProxySpec) -> dict[str, str]:
        """Return `stunnel.conf`.

        Raises
        ------
        UserError
            If the session is to be plaintext.
        """
        if spec.tls is None:
            raise UserError("proxy stunnel cannot be plaintext: open the session encrypted, or use haproxy or nginx")
        return {"stunnel.conf": render("stunnel.conf.j2", spec=spec, tls=spec.tls)}

    def command(self, spec: ProxySpec) -> list[str]:
        """Return the command line."""
        return ["stunnel", f"{spec.folder}/stunnel.conf"]

    def container(self, spec: ProxySpec) -> ContainerNeeds:  # noqa: ARG002
        """Return that nothing else is needed."""
        return ContainerNeeds()

    async def traffic(self, spec: ProxySpec) -> Traffic | None:  # noqa: ARG002
        """Return None: stunnel does not count."""
        return None
