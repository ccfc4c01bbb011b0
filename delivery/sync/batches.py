"""Which files are offered to a broker as one zip, and when they may leave for the archive.

A file is moved only when every broker that has a right to it has acknowledged exactly the content that lies there. The
acknowledgement is on record before the first file moves: killed in between, the server moves the rest at the next look.
"""

import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from delivery.archive.layout import Entry, Layout
from delivery.files.catalogue import Catalogue
from delivery.files.roots import Found, Listing, Refused, Root
from delivery.files.version import FileVersion, SourceChanged
from delivery.sync.ledger import Batch, Ledger, Mirror
from delivery.sync.projects import Projects
from ministream.base.errors import UserError
from ministream.base.log import get_logger

LOOKS = 3
"""How often a folder is looked at anew when a file changes while its digest is taken."""


class Offer(NamedTuple):
    """A batch, and the zip that it is sent as."""

    batch: Batch
    layout: Layout


class UnknownBatch(UserError):  # noqa: N818
    """There is no such batch for this broker, or its files have changed since."""


class WrongDigests(UserError):  # noqa: N818
    """What a broker says that it has is not what it was offered."""


class Batches:
    """Batches of all mirrors; for any number of threads of one process.

    Parameters
    ----------
    projects, ledger, catalogue
        Where files are, what was offered, what is known of files.
    brokers
        Returns who must have a project's files before they are archived.
    limit
        Bytes of files in a batch, which has one file at least; 0: all that is new.
    """

    def __init__(
        self,
        projects: Projects,
        ledger: Ledger,
        catalogue: Catalogue,
        brokers: Callable[[str], Collection[str]],
        limit: int = 0,
    ) -> None:
        self._projects, self._ledger, self._catalogue = projects, ledger, catalogue
        self._brokers, self._limit = brokers, limit
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._laid_out: dict[Mirror, Offer] = {}
        self._refused: dict[str, set[Refused]] = {}

    def check(self, project: str) -> None:
        """Raise UnknownProject if there is no such project."""
        self._projects.root(project)

    def offer(self, mirror: Mirror) -> Offer | None:
        """Return what a mirror is to fetch: what it was offered before, else all that is new; None if nothing is.

        Raises
        ------
        UnknownProject
            If there is no such project.
        SourceChanged
            If files change faster than they can be read.
        """
        root = self._projects.root(mirror.project)
        with self._locks[mirror.project]:
            for _ in range(LOOKS):
                try:
                    return self._offer(mirror, root)
                except SourceChanged as error:
                    changed = error
            raise changed

    def acknowledge(self, mirror: Mirror, id_: str, digests: Mapping[str, str]) -> None:
        """Note that a broker has a batch; saying so twice is saying so.

        Parameters
        ----------
        mirror, id_
            Who has which batch.
        digests
            BLAKE3 of each file that the broker has written, by name.

        Raises
        ------
        UnknownBatch, WrongDigests
            See there; nothing has changed then.
        """
        self._projects.root(mirror.project)
        with self._locks[mirror.project]:
            batch = self._ledger.batch(id_)
            if batch is None or batch.mirror != mirror:
                raise UnknownBatch("this broker is offered no such batch, or no more; ask for what is new")
            if not batch.acknowledged:
                _compare(batch, digests)
                self._note(batch)

    def sent(self, batch: Batch) -> None:
        """Note that the last byte of a batch has left for a broker that will not say what it got."""
        with self._locks[batch.mirror.project]:
            now = self._ledger.batch(batch.id)
            if now and not now.acknowledged:
                self._note(batch)

    def tidy(self, project: str) -> None:
        """Move what all brokers have to the archive."""
        root = self._projects.root(project)
        with self._locks[project]:
            self._archive(project, root, root.scan().files)

    def _offer(self, mirror: Mirror, root: Root) -> Offer | None:
        listing = root.scan()
        self._tell_refused(mirror.project, listing)
        ending = f".{mirror.ext}"
        found = [file for file in listing.files if file.path.lower().endswith(ending)]
        offer = self._current(mirror, root, found) or self._new(mirror, root, found)
        if offer is None:
            self._archive(mirror.project, root, listing.files)
        return offer

    def _current(self, mirror: Mirror, root: Root, found: list[Found]) -> Offer | None:
        """Return what was offered before, if all of it is still as it was."""
        offer = self._laid_out.get(mirror)
        batch = offer.batch if offer else self._ledger.offered(mirror)
        if batch is None:
            return None
        stamps = dict(found)
        if any(stamps.get(version.path) != version.stamp for version in batch.versions):
            return None
        offer = self._laid_out[mirror] = offer or self._lay_out(batch, root)
        return offer

    def _new(self, mirror: Mirror, root: Root, found: list[Found]) -> Offer | None:
        had = self._ledger.had(mirror.project)
        versions = self._catalogue.look(root, found)
        mine = {path: has[mirror.broker] for path, has in had.items() if mirror.broker in has}
        new = self._limited([version for version in versions if mine.get(version.path) != version.blake3])
        if not new:
            return None
        moment = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        batch = Batch(uuid.uuid4().hex, mirror, f"{mirror.ext}_{len(new)}files_{moment}.zip", new)
        offer = self._lay_out(batch, root)
        self._ledger.offer(batch)
        self._laid_out[mirror] = offer
        return offer

    def _lay_out(self, batch: Batch, root: Root) -> Offer:
        """Lay a batch out; brokers that are to have the same files share a layout, which may be large."""
        for other, layout in list(self._laid_out.values()):
            if other.mirror.project == batch.mirror.project and other.versions == batch.versions:
                return Offer(batch, layout)
        return Offer(batch, Layout(root, [Entry(version.path, version) for version in batch.versions]))

    def _limited(self, versions: list[FileVersion]) -> list[FileVersion]:
        total = 0
        for index, version in enumerate(versions):
            total += version.size
            if self._limit and index and total > self._limit:
                return versions[:index]
        return versions

    def _note(self, batch: Batch) -> None:
        self._ledger.acknowledge(batch)
        self._laid_out.pop(batch.mirror, None)
        get_logger().info("batch acknowledged", **batch.mirror._asdict(), files=len(batch.versions), zip=batch.name)
        root = self._projects.root(batch.mirror.project)
        self._archive(batch.mirror.project, root, root.scan().files)

    def _archive(self, project: str, root: Root, found: list[Found]) -> None:
        """Move what all brokers have; what can't be moved now is tried again at the next occasion."""
        had, needed = self._ledger.had(project), set(self._brokers(project))
        ready = [file for file in found if needed and needed <= had.get(file.path, {}).keys()]
        if not ready:
            return
        gone = []
        for version in self._catalogue.look(root, ready):
            if any(had[version.path][broker] != version.blake3 for broker in needed):
                continue
            try:
                self._projects.archive(project, root, version)
                gone.append(version.path)
            except UserError as error:
                get_logger().warning("not archived yet", project=project, reason=str(error))
        self._ledger.archived(project, gone)
        self._catalogue.forget(root, gone)

    def _tell_refused(self, project: str, listing: Listing) -> None:
        """Log files that are not offered, each reason once."""
        told = self._refused.setdefault(project, set())
        refused = set(listing.refused)
        for path, reason in sorted(refused - told):
            get_logger().info("not offered", project=project, file=path, reason=reason)
        self._refused[project] = refused


def _compare(batch: Batch, digests: Mapping[str, str]) -> None:
    offered = {version.path: version.blake3 for version in batch.versions}
    if offered != digests:
        wrong = sorted(name for name in offered.keys() | digests.keys() if offered.get(name) != digests.get(name))
        get_logger().error("a broker has something else", **batch.mirror._asdict(), zip=batch.name, files=len(wrong))
        raise WrongDigests(
            f"{len(wrong)} of {len(offered)} files are not what was offered, the first is {wrong[0][:200]!r}; "
            "delete what was written and fetch the batch again"
        )
