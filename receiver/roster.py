"""The workers on other machines: who has joined, what each was told, when it was last heard.

Requests of the workers come in on the HTTP thread; the main thread engages them for a run and takes what they say.
"""

import queue
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Post:
    """A worker's place in a run: what it is told, and how it ended."""

    run: str
    service: str
    options: Mapping[str, Any]
    stop: str = ""
    """Why the worker shall stop; empty: it shall not."""
    ended: str | None = None
    """How it ended: empty for well; None while it has not."""


@dataclass
class Member:
    """A worker that has joined."""

    number: str
    name: str
    seen: float = field(default_factory=time.monotonic)
    post: Post | None = None
    begun: bool = False
    """Whether it has reported from its post."""

    @property
    def silence(self) -> float:
        """Seconds since it was last heard."""
        return time.monotonic() - self.seen


Said = tuple[Member, Sequence[Mapping[str, Any]]]


class Roster:
    """All workers that have joined and not vanished.

    Parameters
    ----------
    vanished
        Seconds of silence after which a worker is gone.
    """

    def __init__(self, vanished: float) -> None:
        self.vanished = vanished
        self.said: queue.Queue[Said] = queue.Queue()
        """Events, as the workers of a run report them."""
        self._lock = threading.Lock()
        self._members: dict[str, Member] = {}

    def join(self, number: str, name: str) -> Post | None:
        """Take note of a worker that is free; return its post once it has one."""
        with self._lock:
            member = self._members.setdefault(number, Member(number, name))
            member.seen = time.monotonic()
            if member.post is not None and member.begun:  # it asks again, so it has given its post up
                if member.post.ended is None:
                    member.post.ended = "it has left its post"
                member.post = None
            return member.post

    def hear(self, number: str, run: str, events: Sequence[Mapping[str, Any]], ended: str | None) -> str:
        """Take what a worker reports; return why it shall stop (empty: it shall go on).

        Raises
        ------
        KeyError
            If it has no post in that run.
        """
        with self._lock:
            member = self._members[number]
            post = member.post
            if post is None or post.run != run:
                raise KeyError(run)
            member.seen, member.begun = time.monotonic(), True
        self.said.put((member, events))
        if ended is not None:
            post.ended = ended
        return post.stop

    def free(self) -> list[Member]:
        """Return the workers that wait for a post, the first to join first; forget those that have gone."""
        with self._lock:
            self._members = {n: m for n, m in self._members.items() if m.post or m.silence < self.vanished}
            return [member for member in self._members.values() if member.post is None]

    def engage(self, members: Sequence[Member], posts: Sequence[Post]) -> None:
        """Give each of `members` its post."""
        with self._lock:
            for member, post in zip(members, posts, strict=True):
                member.post, member.begun, member.seen = post, False, time.monotonic()

    def dismiss(self, members: Sequence[Member]) -> None:
        """Take the posts back; a worker that comes again joins again."""
        with self._lock:
            for member in members:
                self._members.pop(member.number, None)
