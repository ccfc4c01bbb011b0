"""The workers of one run, here or elsewhere, behind one Protocol: entered they work, left they have ended."""

import os
import queue
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from aps_mini_apps.report.progress import new_event
from ministream.base.children import GRACE, Children, command_line
from ministream.base.errors import UserError
from ministream.base.lifecycle import SLICE
from receiver.desk import Run
from receiver.orders import reconstruction, worker_names, worker_options
from receiver.roster import Member, Post, Roster
from receiver.settings import ReceiverSettings

Hear = Callable[[dict[str, Any]], None]


class Crew(Protocol):
    """The workers of one run; leaving the context ends those that still work, and their last events are heard."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def follow(self) -> Iterator[bool]:
        """Yield True after each event and False when nothing came for a moment, until all have ended well.

        Raises
        ------
        UserError
            Naming the worker that has failed, and why.
        Stopped
            If the run was asked to stop.
        """
        ...


def make_crew(run: Run, settings: ReceiverSettings, roster: Roster, hear: Hear) -> Crew:
    """Return the workers for `run`, who are not at work yet."""
    return RemoteCrew(run, settings, roster, hear) if settings.remote_workers else LocalCrew(run, settings, hear)


class LocalCrew:
    """Child processes of this one."""

    def __init__(self, run: Run, settings: ReceiverSettings, hear: Hear) -> None:
        self._run, self._settings = run, settings
        self._children = Children(run.stop, hear)

    def __enter__(self) -> Self:
        self._children.__enter__()
        order, options = self._run.order, dict(self._run.order.options)
        if "thread" not in reconstruction(order, self._settings).model_fields_set:
            options["thread"] = max(1, (os.cpu_count() or 1) // len(order.listeners))
        for rank, name in enumerate(worker_names(order)):
            told = {**worker_options(order, rank, options), "recon_output_dir": self._settings.output}
            self._children.start(name, "ministream", ["sirt", *command_line(told, self._settings.config_file)])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._children.__exit__(kind, error, trace)

    def follow(self) -> Iterator[bool]:
        """Follow the processes."""
        return self._children.follow()


class RemoteCrew:
    """Workers that have joined from other machines."""

    def __init__(self, run: Run, settings: ReceiverSettings, roster: Roster, hear: Hear) -> None:
        self._run, self._settings, self._roster, self._hear = run, settings, roster, hear
        self._members: Sequence[Member] = ()
        self._posts: list[Post] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        deadline = time.monotonic() + GRACE
        for post in self._posts:
            post.stop = post.stop or str(error or "the run has ended")
        while any(map(self._at_work, self._members)) and time.monotonic() < deadline:
            self._listen()
        while self._listen(0):
            pass
        self._roster.dismiss(self._members)

    def follow(self) -> Iterator[bool]:
        """Wait for the workers, give each its post, and follow them."""
        yield from self._gather()
        while True:
            self._run.stop.raise_if_set()
            at_work = any(post.ended is None for post in self._posts)
            heard = self._listen(SLICE if at_work else 0)
            if not heard:
                self._check()
                if not at_work:
                    return
            yield heard

    def _gather(self) -> Iterator[bool]:
        order = self._run.order
        needed, deadline, seen = len(order.listeners), time.monotonic() + self._settings.join_timeout, -1
        while len(free := self._roster.free()) < needed:
            self._run.stop.raise_if_set()
            if len(free) != seen:
                seen = len(free)
                self._hear(new_event("receiver", "waiting for workers", joined=seen, needed=needed))
            if time.monotonic() > deadline:
                raise UserError(
                    f"{seen} of {needed} workers have joined within {self._settings.join_timeout:g} s: start more"
                    " (python -m receiver.worker)"
                )
            time.sleep(SLICE)
            yield False
        self._members = free[:needed]
        names = worker_names(order)
        self._posts = [Post(self._run.id, name, worker_options(order, rank)) for rank, name in enumerate(names)]
        for member, post in zip(self._members, self._posts, strict=True):
            self._hear(new_event("receiver", "worker engaged", worker=member.name, serves_as=post.service))
        self._roster.engage(self._members, self._posts)

    def _listen(self, patience: float = SLICE) -> bool:
        """Pass on what one worker says next; False if none said anything."""
        try:
            member, events = self._roster.said.get(timeout=patience) if patience else self._roster.said.get_nowait()
        except queue.Empty:
            return False
        for event in events if member in self._members else ():
            self._hear(dict(event))
        return True

    def _at_work(self, member: Member) -> bool:
        post = member.post
        return post is not None and post.ended is None and member.silence < self._roster.vanished

    def _check(self) -> None:
        for member, post in zip(self._members, self._posts, strict=True):
            if post.ended:
                raise UserError(f"{post.service} on {member.name} failed: {post.ended}")
            if post.ended is None and member.silence > self._roster.vanished:
                raise UserError(f"{post.service} on {member.name} has vanished: not heard for {member.silence:.0f} s")


def as_message(post: Post) -> Mapping[str, Any]:
    """Return what a worker is told of its post."""
    return {"run": post.run, "service": post.service, "options": dict(post.options)}
