"""Databases of both kinds: SQLite, and a PostgreSQL server of the session's own."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from tests.delivery.object_stores import mongod, seaweed

__all__ = ["mongod", "seaweed"]

POSTGRES_PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a real server, with a fresh data folder, that listens on a socket file alone."""
    if not POSTGRES_PROGRAMS:
        pytest.skip("not installed on this machine: postgres")
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    account = {}
    if os.geteuid() == 0:  # it refuses to run as root
        account = {"user": "nobody", "group": pwd.getpwnam("nobody").pw_gid, "extra_groups": []}
        shutil.chown(folder, "nobody")
    programs, data = POSTGRES_PROGRAMS[-1], folder / "data"
    options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"

    def run(*command: object) -> None:
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL, timeout=120, **account)

    run(programs / "initdb", "-D", data, "-U", "tester", "-A", "trust", "-N", "--no-locale", "-E", "UTF8")
    run(programs / "pg_ctl", "start", "-D", data, "-w", "-l", folder / "log", "-o", options)
    try:
        yield f"postgresql://tester@/postgres?host={folder}"
    finally:
        run(programs / "pg_ctl", "stop", "-D", data, "-w", "-m", "fast")
        shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of an empty database, once of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/test.db"
        return
    server = request.getfixturevalue("postgres")
    name = f"test_{os.urandom(4).hex()}"
    engine = create_engine(server.replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    yield server.replace("/postgres?", f"/{name}?")
