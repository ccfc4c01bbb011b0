"""The names by which operators choose a proxy."""

from collections.abc import Mapping

from ministream.base.errors import UserError
from s2cs.dataservers.haproxy import Haproxy
from s2cs.dataservers.nginx import Nginx
from s2cs.dataservers.runner_docker import DockerRunner
from s2cs.dataservers.runner_process import ProcessRunner
from s2cs.dataservers.spec import ProxyKind, Runner
from s2cs.dataservers.ssh import Ssh
from s2cs.dataservers.stunnel import Stunnel

KINDS = ("haproxy", "nginx", "stunnel", "ssh")
DOCKER = "docker:"

_SCISTREAM = {"haproxysubprocess": "haproxy", "stunnelsubprocess": "stunnel"}
"""SciStream's other names. Its `Haproxy`, `Nginx` and `Stunnel` are containers there; here they are, as all names
without `docker:`, processes of the gateway: the same programs with the same settings, which need no engine, no
image and no right to command Docker, which is as good as root's."""


def proxy_kind(name: str, images: Mapping[str, str] | None = None) -> tuple[str, ProxyKind, Runner]:
    """Return the plain form of a proxy's name, its kind and what runs it.

    Parameters
    ----------
    name
        `haproxy`, `nginx`, `stunnel`, `ssh`, each also as `docker:…`, or one of SciStream's; in any case.
    images
        Docker images by kind, where the usual one is not wanted.

    Raises
    ------
    UserError
        If there is no such kind.
    """
    lower = name.lower()
    in_container = lower.startswith(DOCKER)
    plain = lower.removeprefix(DOCKER)
    plain = plain if in_container else _SCISTREAM.get(plain, plain)
    if plain not in KINDS:
        raise UserError(
            f"no proxy is called {name!r}; known are {', '.join(KINDS)}, each also as docker:KIND, and SciStream's "
            "Haproxy, Nginx, Stunnel, HaproxySubprocess, StunnelSubprocess"
        )
    kinds: dict[str, ProxyKind] = {
        "haproxy": Haproxy(),
        "nginx": Nginx(in_container=in_container),
        "stunnel": Stunnel(),
        "ssh": Ssh(in_container=in_container),
    }
    if in_container:
        return DOCKER + plain, kinds[plain], DockerRunner(images or {})
    return plain, kinds[plain], ProcessRunner()
