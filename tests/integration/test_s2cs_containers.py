"""Proxies in Docker containers, all four kinds, from the image that an operator builds.

Where no engine runs, `tests/docker/engine.sh` starts one and makes the image.
"""

import asyncio
import os

import pytest

from ministream.base.errors import UserError
from s2cs.dataservers import proc
from s2cs.dataservers.runner_docker import LABEL_FOLDER, OWN_IMAGE
from tests.integration.hops import Hop, count, echo, until

IMAGES = {"haproxy": OWN_IMAGE, "nginx": OWN_IMAGE}  # the official ones need a registry


@pytest.mark.parametrize(("kind", "containers"), [("haproxy", 2), ("nginx", 2), ("stunnel", 2), ("ssh", 1)])
def test_containers_serve_come_back_when_killed_and_leave_nothing(tmp_path, docker_client, kind, containers):
    async def main() -> None:
        async with Hop(f"docker:{kind}", tmp_path, images=IMAGES) as hop:
            payload = os.urandom(1 << 20)
            await echo(hop.entrances[0], payload)
            assert await count(hop.running[1], 2 * len(payload)) < 3 * len(payload)
            records = [proxy.record.container for proxy in hop.running if proxy.record.container]
            assert len(records) == containers
            for number, container in enumerate(map(docker_client.containers.get, records), 1):
                assert_confined(container.attrs, kind)
                container.kill()
                assert await until(lambda number=number: len(hop.restarts) == number) < 10
            assert all("code 137" in why for why in hop.restarts)
            await echo(hop.entrances[0], b"after")
            if kind == "stunnel":
                container.remove(force=True)
                await until(lambda: len(hop.restarts) > containers, patience=60)  # made anew
                await echo(hop.entrances[0], b"made anew")
        for spec in hop.specs:
            assert not docker_client.containers.list(all=True, filters={"label": f"{LABEL_FOLDER}={spec.folder}"})
        assert not hop.ports & proc.listened_ports()
        assert not hop.failures

    asyncio.run(main())


def assert_confined(attributes: dict, kind: str) -> None:
    host, config = attributes["HostConfig"], attributes["Config"]
    own = {"SETGID", "SETUID", "SYS_CHROOT"} if kind == "ssh" and os.getuid() == 0 else set()
    assert {c.removeprefix("CAP_") for c in host["CapAdd"] or ()} == own
    assert host["CapDrop"] == ["ALL"]
    assert host["ReadonlyRootfs"]
    assert not host["Privileged"]
    assert "no-new-privileges" in host["SecurityOpt"]
    assert config["User"] == f"{os.getuid()}:{os.getgid()}"


@pytest.mark.parametrize(("images", "cure"), [({}, "docker pull haproxy:lts"), ({"haproxy": "x:1"}, "docker pull x:1")])
def test_a_missing_image_is_told_with_the_command_that_brings_it(tmp_path, docker_client, images, cure):
    if docker_client.images.list(images.get("haproxy", "haproxy:lts")):
        pytest.skip("this engine has it")

    async def main() -> None:
        with pytest.raises(UserError, match=cure):
            await Hop("docker:haproxy", tmp_path, images=images).__aenter__()

    asyncio.run(main())
