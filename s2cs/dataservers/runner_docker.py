"""A proxy in a Docker container: the same program, files and command line as a process.

The session's folder is mounted where it lies, read-only but for the part that the proxy writes to; the container
shares the gateway's network, runs as the gateway's user and has no capabilities (but for root's sshd). One that died
is started again, not made anew, which takes a tenth of a second on any storage. No image is fetched while a user
waits: the operator pulls or builds them before. Docker's SDK is an extra of this package and is imported only here
and late.
"""

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ministream.base.errors import UserError
from s2cs.dataservers import proc
from s2cs.dataservers.limits import RUN
from s2cs.dataservers.runner_process import ProcessRunner, until_readable
from s2cs.dataservers.spec import ContainerNeeds, Handle, ProxyKind, ProxySpec
from s2cs.store import ProcessRecord
from s2cs.trust import write_private

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

LABEL_FOLDER, LABEL_SESSION = "s2cs.folder", "s2cs.session"
OWN_IMAGE = "mini-stream-proxies"
"""Made from the Dockerfile in `IMAGE_FOLDER`; it has all four programs."""
IMAGE_FOLDER = Path(__file__).with_name("images")
IMAGES = {"haproxy": "haproxy:lts", "nginx": "nginx:stable", "stunnel": OWN_IMAGE, "ssh": OWN_IMAGE}
"""Official images where there are any."""

LAST_LINES = 5
LOG_SIZE = "1m"

T = TypeVar("T")


def engine() -> "DockerClient":
    """Return a client of the Docker engine that the environment names.

    Raises
    ------
    UserError
        If the SDK is not installed or no engine answers.
    """
    try:
        import docker
    except ImportError as error:
        raise UserError("proxies in containers need Docker's SDK: pip install 'mini-stream[docker]'") from error
    try:
        client = docker.from_env()
        client.ping()
    except (docker.errors.DockerException, OSError) as error:
        raise UserError(
            f"no Docker engine answers ({error}); start one, or choose the same proxy without docker:"
        ) from error
    return client


class DockerRunner:
    """Starts and finds containers; `images` names an image by kind where the usual one is not wanted."""

    def __init__(self, images: Mapping[str, str]) -> None:
        self._images = {**IMAGES, **images}

    async def start(self, kind: ProxyKind, spec: ProxySpec) -> Handle:
        """Start a container, whose files are written already; again, if it is there from before.

        Raises
        ------
        UserError
            If there is no engine or no image, or the engine refuses.
        """
        needs = kind.container(spec)
        if needs is None:
            return await ProcessRunner().start(kind, spec)
        image = self._images[kind.name]
        return DockerHandle(await _call(lambda: _run(engine(), image, kind.command(spec), spec, needs)), spec)

    async def adopt(self, spec: ProxySpec, record: ProcessRecord) -> Handle | None:
        """Find what an earlier control server started; None if it is gone."""
        if not record.container:
            return await ProcessRunner().adopt(spec, record)
        found = await _call(lambda: _containers(engine(), LABEL_FOLDER, str(spec.folder)))
        running = [c for c in found if c.id == record.container and c.status == "running"]
        return DockerHandle(running[0], spec) if running else None


class DockerHandle:
    """A container."""

    def __init__(self, container: "Container", spec: ProxySpec) -> None:
        self._container, self._spec = container, spec
        self._said = ""
        self.record = ProcessRecord(container=str(container.id))

    def alive(self) -> bool:
        """Return whether it runs."""
        import docker

        try:
            self._container.reload()
        except docker.errors.NotFound:
            return False
        return self._container.status == "running"

    def listening(self) -> frozenset[int]:
        """Return the TCP ports on which something listens: the network is the gateway's own."""
        return proc.listened_ports()

    async def wait(self) -> str:
        """Return how it ended, once it has."""
        with suppress(OSError):  # it has ended already
            pidfd = os.pidfd_open(self._container.attrs["State"]["Pid"])
            try:
                await until_readable(pidfd)  # holds no thread, of which there are few
            finally:
                os.close(pidfd)
        try:
            result = await _call(self._container.wait)
            self._said = await _call(lambda: self._container.logs(tail=LAST_LINES).decode(errors="replace"))
        except UserError as error:  # somebody has removed it, or the engine itself has ended
            return str(error)
        return f"its container ended with code {result['StatusCode']}"

    def last_words(self) -> str:
        """Return the end of what it said, in one line."""
        return "; ".join(line.strip() for line in self._said.splitlines() if line.strip())

    async def stop(self) -> None:
        """End and remove the container."""
        await _call(lambda: _remove(self._container))


async def end_containers(folder: Path, spare: Iterable[str]) -> list[str]:
    """Remove the containers of sessions below `folder`, but for those to `spare`; return their numbers.

    Where there is no engine there are none.
    """
    with suppress(UserError):
        found = await _call(lambda: _containers(engine(), LABEL_SESSION))
        strays = [c for c in found if c.labels[LABEL_FOLDER].startswith(f"{folder}/") and c.id not in set(spare)]
        for container in strays:
            await _call(lambda container=container: _remove(container))  # type: ignore[misc]
        return [str(container.short_id) for container in strays]
    return []


def _run(client: "DockerClient", image: str, argv: list[str], spec: ProxySpec, needs: ContainerNeeds) -> "Container":
    there = _containers(client, LABEL_FOLDER, str(spec.folder))
    container = there[0] if there else _create(client, image, argv, spec, needs)
    try:
        container.start()
        container.reload()
    except BaseException:
        _remove(container)
        raise
    return container


def _create(client: "DockerClient", image: str, argv: list[str], spec: ProxySpec, needs: ContainerNeeds) -> "Container":
    import docker

    folder, written = str(spec.folder), str(spec.folder / RUN)
    try:
        return client.containers.create(
            image,
            entrypoint=argv[:1],
            command=argv[1:],
            network_mode="host",
            user=f"{os.getuid()}:{os.getgid()}",
            working_dir=folder,
            volumes=[f"{folder}:{folder}:ro", f"{written}:{written}:rw", *_place(needs.files, spec.folder)],
            tmpfs={"/tmp": "", "/var/lib/nginx": "", "/var/cache/nginx": ""},  # noqa: S108 - inside the container
            read_only=True,
            cap_drop=["ALL"],
            cap_add=list(needs.capabilities),
            security_opt=["no-new-privileges"],
            log_config=docker.types.LogConfig(type="json-file", config={"max-size": LOG_SIZE}),
            labels={LABEL_SESSION: spec.uid, LABEL_FOLDER: folder},
        )
    except docker.errors.ImageNotFound as error:
        make = f"build --tag {image} {IMAGE_FOLDER}" if image == OWN_IMAGE else f"pull {image}"
        raise UserError(f"the Docker engine has no image {image}; on the gateway: docker {make}") from error


def _place(files: Mapping[str, str], folder: Path) -> list[str]:
    """Write these files to the session's folder; return where in the container they are to appear."""
    for place, content in files.items():
        write_private(folder / Path(place).name, content.encode())
    return [f"{folder / Path(place).name}:{place}:ro" for place in files]


def _containers(client: "DockerClient", label: str, value: str = "") -> "list[Container]":
    wanted = f"{label}={value}" if value else label
    return client.containers.list(all=True, filters={"label": wanted}, ignore_removed=True)


def _remove(container: "Container") -> None:
    import docker

    with suppress(docker.errors.NotFound):
        container.remove(force=True)


async def _call(ask: Callable[[], T]) -> T:
    """Ask the engine from a thread; what it refuses is the operator's to mend."""
    try:
        return await asyncio.to_thread(ask)
    except UserError:
        raise
    except Exception as error:
        if not type(error).__module__.startswith("docker."):  # imported late, so not to be named here
            raise
        raise UserError(f"the Docker engine refused: {error}") from error
