"""Gateways of an ordinary user: nothing of a tunnel needs root."""

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from s2cs.proto import scistream_pb2 as pb
from tests.conftest import ROOT
from tests.integration.gateways import (
    Code,
    Side,
    connect,
    converse,
    echo,
    fresh,
    process,
    proxies,
    refusal,
    request,
    run,
    some_ports,
)

pytestmark = pytest.mark.needs("haproxy", "nginx", "stunnel", "sshd", "unshare", "setpriv")

USER = 54_321
"""An account that the machine does not know by name, unless a test says otherwise."""
NAMELESS, PERSON, SERVICE = "", "/bin/sh", "/usr/sbin/nologin"
"""Login shells."""


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder that the user owns and reaches, which pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="s2cs-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def as_user(scratch: Path, shell: str) -> list[str]:
    """Return the words that, before a command, run it as `USER`.

    What the interpreter and the package need, and would lie in a folder closed to others, stays at its place and can
    be reached: in a mount namespace of the command's own, where that folder shows nothing else.
    """
    needed = [Path(sys.base_prefix), Path(sys.prefix), ROOT / "s2cs", ROOT / "ministream"]
    closed = {path: folder for path in needed if (folder := closed_above(path))}
    stages = {path: scratch / f"stage-{number}" for number, path in enumerate(closed)}
    for stage in stages.values():
        stage.mkdir(exist_ok=True)
    steps = [["mount", "--bind", path, stage] for path, stage in stages.items()]
    steps += [["mount", "-t", "tmpfs", "-o", "mode=755", "none", folder] for folder in set(closed.values())]
    for path, stage in stages.items():
        steps += [["mkdir", "-p", path], ["mount", "--bind", stage, path]]
    if shell:
        passwd = scratch / "passwd"
        passwd.write_text(f"{Path('/etc/passwd').read_text()}gate:x:{USER}:{USER}::{scratch}:{shell}\n")
        steps.append(["mount", "--bind", passwd, "/etc/passwd"])
    script = "".join(f"{shlex.join(map(str, step))}\n" for step in steps)
    script += f'exec setpriv --reuid={USER} --regid={USER} --clear-groups "$@"\n'
    return ["unshare", "--mount", "sh", "-ec", script, "sh"]


def closed_above(path: Path) -> Path | None:
    """Return the uppermost of the folders around `path` that others may not pass, if any."""
    return next((folder for folder in reversed(path.parents) if not folder.stat().st_mode & 0o001), None)


@pytest.fixture
def wrapper(scratch: Path, shell: str) -> list[str]:
    if os.geteuid():
        pytest.skip("only root can run programs as another user")
    words = as_user(scratch, shell)
    tried = subprocess.run([*words, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"this machine lets root make no mount namespace: {tried.stderr.strip()}")
    return words


def home(scratch: Path, name: str) -> Path:
    folder = scratch / name
    folder.mkdir()
    os.chown(folder, USER, USER)
    return folder


def owners(pids: list[int]) -> set[int]:
    """Return the real, effective and saved users of these processes."""
    lines = [Path(f"/proc/{pid}/status").read_text().partition("\nUid:")[2].splitlines()[0] for pid in pids]
    return {int(number) for line in lines for number in line.split()}


async def release(uid: str, *sides: Side) -> None:
    for side in sides:
        await side.release(pb.Release(uid=uid))


@pytest.mark.parametrize(
    ("kind", "shell"),
    [("haproxy", NAMELESS), ("nginx", NAMELESS), ("stunnel", NAMELESS), ("ssh", PERSON)],
)
def test_a_user_s_gateways_open_a_tunnel_and_leave_nothing(scratch: Path, wrapper: list[str], kind: str) -> None:
    async def work() -> None:
        prod_home, cons_home = home(scratch, "prod"), home(scratch, "cons")
        words = ("--port", "0", "--type", kind, "--port-range")
        async with (
            echo() as service,
            process(prod_home, *words, some_ports(50), wrapper=wrapper) as (_, prod),
            process(cons_home, *words, some_ports(50), wrapper=wrapper) as (_, cons),
        ):
            uid, (listener,) = await connect(prod, cons, [service])
            assert await converse(listener, b"hello\n") == b"hello\n"
            running = proxies(scratch)
            assert len(running) >= 2
            assert owners(running) == {USER}
            await release(uid, prod, cons)
            assert proxies(scratch) == []
            for folder in (prod_home, cons_home):
                assert list((folder / "state" / "sessions").iterdir()) == []

    run(work())


@pytest.mark.parametrize("shell", [NAMELESS, SERVICE])
def test_an_account_that_may_not_log_in_is_told_so_before_ssh_tries(scratch: Path, wrapper: list[str]) -> None:
    async def work() -> None:
        words = ("--port", "0", "--type", "ssh", "--port-range", some_ports(50))
        async with process(home(scratch, "prod"), *words, wrapper=wrapper) as (_, prod):
            uid, target = fresh(), "127.0.0.1:9"
            answer = await prod.req(request(uid, greeted=True, targets=[target]))
            opening = pb.UpdateTargets(uid=uid, remote_listeners=[target], peer_certificate=answer.certificate)
            code, text = await refusal(prod.update(opening))
            assert (code, "has no login shell" in text) == (Code.FAILED_PRECONDITION, True)
            assert proxies(scratch) == []

    run(work())
