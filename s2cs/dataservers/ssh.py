"""SSH: where only that may pass a firewall. Inbound a real sshd, outbound a forwarder of ours.

The session's own key pairs serve as host key and as user key, so that the certificates that travel anyway say all:
each side takes the other's public key, and the outbound side the account to log in to, from them. The sshd belongs
to the session alone, runs as the gateway's own account, and lets that one key open connections to the session's
targets, and learn them, and do nothing else.
"""

import importlib.util
import json
import os
import pwd
import sys
from pathlib import Path
from typing import ClassVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ministream.base.errors import UserError
from s2cs.dataservers.rendering import render
from s2cs.dataservers.spec import ContainerNeeds, ProxySpec, Tls, Traffic
from s2cs.trust import account_name

TARGETS = "targets"
_FORWARDER = "ssh_forward.json"
_NO_SHELLS = ("nologin", "false")


class Ssh:
    """The inbound side listens with sshd, the outbound side with `s2cs.dataservers.ssh_forward`.

    As `docker:ssh` the sshd runs in a container. The forwarder stays a process: it is this package's own program, so
    that an image of it would have to be made anew with every version of the control server that it belongs to.
    """

    name: ClassVar[str] = "ssh"
    program: ClassVar[str] = "/usr/sbin/sshd"  # it insists on a full path
    package: ClassVar[str] = "openssh-server"
    supports_rate: ClassVar[bool] = False

    def __init__(self, *, in_container: bool = False) -> None:
        self._in_container = in_container  # where the account is what `container` says

    def render(self, spec: ProxySpec) -> dict[str, str]:
        """Return the files of sshd, or of the forwarder; the peer's certificate must be there already.

        Raises
        ------
        UserError
            If the session is to be plaintext, paramiko is not installed, or the gateway's account may not log in.
        """
        tls = _tls(spec)
        if tls.side == "client":
            return {_FORWARDER: _forwarder(spec, tls)}
        if not self._in_container:
            _check_login()
        peer = x509.load_pem_x509_certificate(tls.peer_certificate.read_bytes())
        key = peer.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        return {
            "sshd_config": render("sshd_config.j2", spec=spec, tls=tls, account=account_name(), targets=TARGETS),
            "authorized_keys": render("authorized_keys.j2", spec=spec, key=key),
            TARGETS: "".join(f"{target}\n" for _, target in spec.pairs),
        }

    def command(self, spec: ProxySpec) -> list[str]:
        """Return the command line."""
        if _tls(spec).side == "client":
            return [sys.executable, "-P", "-m", "s2cs.dataservers.ssh_forward", f"{spec.folder}/{_FORWARDER}"]
        return [self.program, "-D", "-e", "-f", f"{spec.folder}/sshd_config"]

    def container(self, spec: ProxySpec) -> ContainerNeeds | None:
        """Return that sshd has to find its own account, and, to separate its privileges, three capabilities of root's.

        An sshd that another user starts has nothing to separate, and needs none.
        """
        if _tls(spec).side == "client":
            return None
        uid, gid = os.getuid(), os.getgid()
        passwd = f"{account_name()}:x:{uid}:{gid}::{spec.folder}:/bin/sh\n"
        if uid:
            return ContainerNeeds({"/etc/passwd": passwd})
        passwd += "sshd:x:65534:65534::/run/sshd:/usr/sbin/nologin\n"
        return ContainerNeeds({"/etc/passwd": passwd}, capabilities=("SETGID", "SETUID", "SYS_CHROOT"))

    async def traffic(self, spec: ProxySpec) -> Traffic | None:  # noqa: ARG002
        """Return None: neither side counts."""
        return None


def _tls(spec: ProxySpec) -> Tls:
    if spec.tls is None:
        raise UserError("proxy ssh cannot be plaintext: open the session encrypted, or use haproxy or nginx")
    return spec.tls


def _check_login() -> None:
    """Refuse an account for which sshd would run nothing, not even what tells the targets."""
    try:
        shell = pwd.getpwuid(os.geteuid()).pw_shell
    except KeyError:
        shell = "nologin"
    if Path(shell).name in _NO_SHELLS:
        raise UserError(
            f"proxy ssh lets the other gateway log in to this one's account, and {account_name()} has no login shell: "
            "run the control server as a user who has, or choose another --type"
        )


def _forwarder(spec: ProxySpec, tls: Tls) -> str:
    if importlib.util.find_spec("paramiko") is None:
        raise UserError("proxy ssh needs paramiko on this gateway: pip install 'mini-stream[ssh]'")
    return json.dumps(
        {
            "pairs": [[str(listener), str(gateway)] for listener, gateway in spec.pairs],
            "key": str(tls.key),
            "peer_certificate": str(tls.peer_certificate),
        }
    )
