"""Durable jobs: what was begun goes on after a crash, from its last finished step. DBOS keeps them.

DBOS was taken after trying it on both databases: a process killed with -9 in a step goes on, once started anew, at that
step, as soon as `running` is entered; finished steps are not run again, and a job started twice under one name is one
job. What a step does may be done twice (killed after it was done, before that was noted), so steps must be repeatable:
write aside and rename, delete what may be gone.

It knows no ageing of priorities and no admission by disk space; who starts jobs decides when. It keeps its state in the
database that it is given: with SQLite in a file beside ours, whose write lock it would hold otherwise.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

from dbos import DBOS, DBOSConfig, SetWorkflowID
from sqlalchemy.engine import make_url

P = ParamSpec("P")
R = TypeVar("R")

_RELEASE = "1"
"""Jobs begun by one release are gone on with by the next; raised with a change of steps that forbids it."""


def job(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Declare a function of a module to be a job: it does nothing itself but calls steps, the same ones each time."""
    return DBOS.workflow(name=name, max_recovery_attempts=None)


def step(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Declare a function to be a step of jobs: repeatable, and its result fit for pickle."""
    return DBOS.step(name=name)


@contextmanager
def running(database: str, *, worker: str = "local") -> Iterator[None]:
    """Run jobs in threads of this process, those that it left unfinished first.

    Parameters
    ----------
    database
        URL, as `open_database` takes it.
    worker
        Name of this process among those that share the database: each goes on with its own jobs.
    """
    logging.getLogger("dbos").setLevel(logging.ERROR)
    config: DBOSConfig = {
        "name": "delivery",
        "system_database_url": _beside(database),
        "executor_id": worker,
        "application_version": _RELEASE,
        "log_level": "ERROR",
        "enable_otlp": False,
    }
    DBOS(config=config)
    DBOS.launch()
    try:
        yield
    finally:
        DBOS.destroy()


def start(name: str, function: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
    """Start a job under a name of its own; one that was started under that name before is left as it is."""
    with SetWorkflowID(name):
        DBOS.start_workflow(function, *args, **kwargs)


def pause(seconds: float) -> None:
    """Let the job that calls this wait; after a kill, for what is left of that."""
    DBOS.sleep(seconds)


def cancel(name: str) -> None:
    """Let a job end after the step that it is in."""
    DBOS.cancel_workflow(name)


def result(name: str) -> Any:
    """Wait for a job and return its result, or raise what it raised."""
    return DBOS.retrieve_workflow(name).get_result()


def _beside(database: str) -> str:
    url = make_url(database)
    if url.get_backend_name() == "sqlite":
        url = url.set(database=f"{url.database}-jobs")
    return url.render_as_string(hide_password=False)
