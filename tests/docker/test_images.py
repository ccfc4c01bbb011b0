"""What is in the images, and what is not."""

import pytest

from tests.docker.conftest import MARKS, docker, inspect

pytestmark = [
    *MARKS,
    pytest.mark.timeout(1800),
    pytest.mark.usefixtures("images"),
]

LARGEST = {"mini-stream/control": 250e6, "mini-stream/pipeline": 900e6}

PROGRAMS = {
    "mini-stream/control": "bash s2cs s2uc haproxy nginx stunnel sshd",
    "mini-stream/pipeline": "bash ministream",
}


@pytest.mark.parametrize("image", LARGEST)
def test_they_are_small_labelled_and_nobodys_root(image: str) -> None:
    found = inspect(image)
    assert found["Size"] <= LARGEST[image]
    assert found["Config"]["User"] == "ministream"
    assert found["Config"]["Labels"]["org.opencontainers.image.title"] == "Mini-Stream"


@pytest.mark.parametrize("image", PROGRAMS)
def test_they_hold_what_is_needed_and_no_compiler(image: str) -> None:
    script = (
        f"id -u; type -P {PROGRAMS[image]} >/dev/null || echo missing; type -P cc gcc make pip pip3; python3 -m pip -V"
    )
    said = docker("run", "--rm", "--network", "none", "--entrypoint", "bash", image, "-c", script, check=False)
    assert said == "10001"


@pytest.mark.parametrize("image", PROGRAMS)
def test_they_hold_no_secret(image: str) -> None:
    secrets = "-name '*key*' -o -name 'token*' -o -name '*.crt'"
    script = f"find /access /var/lib/s2cs /var/lib/receiver /etc/ssh {secrets} 2>/dev/null"
    said = docker("run", "--rm", "--network", "none", "--entrypoint", "bash", image, "-c", script, check=False)
    assert not said


def test_the_receivers_can_upload_what_it_has_finished() -> None:
    script = "delivery upload --help >/dev/null && python3 -c 'import delivery.upload.client' && echo works"
    image = "mini-stream/pipeline"
    said = docker("run", "--rm", "--network", "none", "--entrypoint", "bash", image, "-c", script, check=False)
    assert said == "works"
