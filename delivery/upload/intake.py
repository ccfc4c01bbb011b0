"""What may be done with uploads, whatever door a request came through.

All of it blocks, so that doors call it in threads.
"""

import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from delivery.people.accounts import Person
from delivery.people.rights import DAY, check_licence, check_quota
from delivery.upload.along import Along
from delivery.upload.arriving import Arrival, Places
from delivery.upload.digests import Kind, Proof, is_same, new_hasher, tree
from delivery.upload.ledger import LONGEST_NAME, Chunk, Ended, Ledger, State, Upload
from delivery.upload.stores import ChunkStore, Gone, NoRoom, Pieces, Taken
from ministream.base.errors import UserError
from ministream.base.log import get_logger

MOST_CHUNKS = 1_000_000
"""Of one upload: their digests are 32 MB then."""

LONGEST_PATH = 1024
"""Bytes of a path below its owner's folder: of the 4096 that Linux takes of a whole one, and of S3's 1024."""

LOCKS = 64

TUS_WHOLE, TUS_PART = "tus", "tus-part"
TUS_DOORS = TUS_WHOLE, TUS_PART
"""Doors of uploads whose bytes come in order: what lies there may count before it is entered."""


class Refused(UserError):  # noqa: N818 - an answer
    """A request is refused; `status` is HTTP's word for why."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class Terms(NamedTuple):
    """What the intake takes: bytes in all (0: any number), reserved for unknown sizes, in a chunk at most."""

    space: int
    unknown_size: int
    largest_chunk: int


class Intake:
    """Takes uploads in; for any number of threads.

    Parameters
    ----------
    ledger, store, along
        The service's parts.
    terms
        What it takes.
    key
        Of old clients' HMACs.
    forward
        Called with an upload that is stored and to be sent on; None if it stays here.
    ended
        Called with an upload that has ended in whatever way.
    spool
        Folder for chunks that the store takes whole, while they come; None for the system's own.
    """

    def __init__(
        self,
        ledger: Ledger,
        store: ChunkStore,
        along: Along,
        terms: Terms,
        key: bytes = b"",
        forward: Callable[[str], None] | None = None,
        ended: Callable[[str], None] = lambda _upload: None,
        spool: Path | None = None,
    ) -> None:
        self.ledger, self.store, self.terms = ledger, store, terms
        self._along, self._key, self._forward, self._ended, self._spool = along, key, forward, ended, spool
        self._locks = [threading.Lock() for _ in range(LOCKS)]
        self._announcing = threading.Lock()  # nobody reserves what another one has just been promised
        self._places = Places()

    # Beginning

    def announce(
        self,
        person: Person,
        name: str,
        size: int | None,
        chunk_size: int,
        *,
        digest: Kind = Kind.TREE,
        key: str = "",
        door: str = "own",
        more: Mapping[str, Any] | None = None,
    ) -> Upload:
        """Begin an upload, or return the one that its owner has begun under this key.

        Raises
        ------
        Refused
            If the name, the size or the digest can't be had here.
        NoLicence, OverQuota, NoRoom
            If there is no right to it, or no room for it.
        """
        check_name(name)
        now = self.ledger.clock()
        upload = Upload(
            id=secrets.token_hex(16), owner=person.name, name=name, exact=size is not None,
            size=self.terms.unknown_size if size is None else size, chunk_size=chunk_size, digest=digest, door=door,
            key=key, more=dict(more or {}), handle="", state=State.OPEN, reason="", created=now,
            expires=self.ledger.deadline(),
        )  # fmt: skip
        with self._announcing:
            return self._begun(upload) or self._begin(upload, person)

    def _begun(self, upload: Upload) -> Upload | None:
        before = self.ledger.current(upload.owner, upload.key) if upload.key else None
        same = before and (before.name, before.size) == (upload.name, upload.size) and before.fits(upload.chunk_size)
        return before if same else None

    def _begin(self, upload: Upload, person: Person) -> Upload:
        self._check_chunks(upload)
        check_licence(person, upload.created)
        check_quota(person, self.ledger.asked(person.name, upload.created - DAY), upload.size)
        if self.terms.space and self.ledger.reserved() + upload.size > self.terms.space:
            raise NoRoom(f"{upload.size} bytes are more than is left of the {self.terms.space} for uploads")
        upload = upload._replace(handle=self.store.begin(upload.slot, exact=upload.exact))
        self.ledger.add(upload)
        return upload

    def _check_chunks(self, upload: Upload) -> None:
        least, most = self.store.least, min(self.store.most, self.terms.largest_chunk)
        if upload.chunk_size > most or (upload.chunk_size < least and upload.size > upload.chunk_size):
            raise Refused(400, f"chunks of {upload.chunk_size} bytes are not taken: {least} to {most} are")
        if upload.chunk_count > MOST_CHUNKS:
            raise Refused(400, f"{upload.chunk_count} chunks are too many: make them larger")
        if upload.digest != Kind.TREE and not self.store.readable:
            raise Refused(400, "this store can prove the whole by its tree digest alone")

    def find(self, person: Person, name: str) -> Upload:
        """Return an upload of this person's, or anybody's for an operator; 404 if there is none."""
        upload = self.ledger.get(name)
        if upload is None or (upload.owner != person.name and not person.is_operator):
            raise Refused(404, "there is no such upload")
        return upload

    def find_open(self, person: Person, name: str) -> Upload:
        """Return an upload that is open; 410 if it has ended otherwise than by being stored."""
        upload = self.find(person, name)
        if upload.state in (State.EXPIRED, State.CANCELLED):
            raise Refused(410, f"this upload is {upload.state}: {upload.reason}; begin anew")
        return upload

    def find_fillable(self, person: Person, name: str) -> Upload:
        """Return an open upload whose chunks may come in any order; 404 for those that come in order, by tus."""
        upload = self.find_open(person, name)
        if upload.door in TUS_DOORS:
            raise Refused(404, "there is no such upload at this door: it comes by tus")
        return upload

    # Chunks

    def arrive(self, upload: Upload, number: int, length: int, proof: Proof | None) -> Arrival:
        """Let a chunk of `length` bytes come; give it to `settle` at its end, and to `leave` in any case.

        Raises
        ------
        Refused
            400 if it has no such number or length.
        """
        self.check_length(upload, number, length)
        arrival = Arrival(upload, number, proof, self._key, self._spool)
        if self.store.in_place:
            self._places.take(arrival, self.store)
        try:
            held = self.ledger.chunk(upload.id, number)  # asked once the place is ours: nobody enters it unnoticed now
        except BaseException:
            self._places.leave(arrival)
            raise
        if held:
            self._places.leave(arrival)
        return arrival

    def settle(self, arrival: Arrival) -> None:
        """Verify a chunk that has come, and count it; one that is there already is left as it is.

        Raises
        ------
        Refused
            400 if it has not its length, 406 if its digest is wrong, or another chunk has its place; 503 if it has to
            be sent again, since another request took its place and failed.
        """
        upload, number = arrival.upload, arrival.number
        self.check_length(upload, number, arrival.length)
        chunk = arrival.proved()
        if chunk is None:
            kind = arrival.proof.kind if arrival.proof else Kind.BLAKE3
            raise Refused(406, f"chunk {number} did not arrive as it was sent: its {kind} is another one")
        try:
            with self._lock(upload.id, number), self._places.closed(arrival) as complete:
                if complete:  # and nobody else has entered this chunk since it came: that takes the place away
                    self.ledger.enter(upload.id, chunk)
                else:
                    self._place(upload, chunk, arrival.pieces)
        except (Ended, Gone) as error:
            raise self._too_late(upload) from error
        self._along.nudge(upload)

    def leave(self, arrival: Arrival) -> None:
        """Let an arrival end, however it went."""
        self._places.leave(arrival)

    def keep(self, upload: Upload, number: int, length: int, blocks: Pieces, proof: Proof | None = None) -> None:
        """Take in a chunk that is at hand, block by block, as `arrive` and `settle` do."""
        arrival = self.arrive(upload, number, length, proof)
        try:
            for block in blocks:
                arrival.add([block])
            self.settle(arrival)
        finally:
            self.leave(arrival)

    def write(self, upload: Upload, chunk: Chunk, pieces: Pieces, *, count: bool = True) -> None:
        """Write a verified chunk, and count it."""
        try:
            with self._lock(upload.id, chunk.number):
                self._place(upload, chunk, pieces, count=count)
        except (Ended, Gone) as error:
            raise self._too_late(upload) from error
        if count:
            self._along.nudge(upload)

    def _place(self, upload: Upload, chunk: Chunk, pieces: Pieces, *, count: bool = True) -> None:
        held = self.ledger.chunk(upload.id, chunk.number)
        if held == chunk:
            return
        if held:
            raise Refused(406, f"chunk {chunk.number} is here already, with another content: begin anew")
        if not pieces:
            current = self.ledger.get(upload.id)
            if current is None or current.state != State.OPEN:
                raise Ended
            raise Refused(503, f"another request for chunk {chunk.number} was first, and failed: send it again")
        with self._places.alone(upload.id, chunk.number):
            self.store.put(upload.slot, chunk.number, pieces)
            if count:
                self.ledger.enter(upload.id, chunk)

    def check_length(self, upload: Upload, number: int, length: int) -> None:
        """Refuse a chunk of a length that it can't have."""
        expected = upload.length(number)
        if not expected:
            raise Refused(400, f"there is no chunk {number}: they are numbered from 0 to {upload.chunk_count - 1}")
        if length > expected or (upload.exact and length != expected) or not length:
            raise Refused(400, f"chunk {number} has {length} bytes, and should have {expected}")

    def known(self, upload: Upload, digests: Mapping[int, bytes]) -> list[int]:
        """Fill in chunks that their owner has stored before; returns the numbers of those that need not be sent."""
        places = self.ledger.known(upload.owner, list(digests.values()))
        held = []
        for number, digest in sorted(digests.items()):
            if digest in places and self._copy(upload, number, digest, *places[digest]):
                held.append(number)
        return held

    def _copy(self, upload: Upload, number: int, digest: bytes, source: Upload, place: int) -> bool:
        start, length = place * source.chunk_size, source.length(place)
        try:
            blocks = self.store.read(source.slot, start, start + length)
            self.keep(upload, number, length, blocks, Proof(Kind.BLAKE3, digest.hex()))
        except UserError as error:  # not there any more, or changed by somebody: then it is sent
            get_logger().debug("not copied", upload=upload.id, chunk=number, reason=str(error))
            return False
        return True

    # The end

    def finalise(
        self, upload: Upload, proof: Proof | None, *, size: int | None = None, count: int | None = None
    ) -> Upload:
        """Store an upload whose chunks are all there and whose whole is right; a second time, only say so.

        Parameters
        ----------
        upload
            Which.
        proof
            Digest of the whole; None if there is none to compare with (tus).
        size, count
            Its bytes and chunks, as the client says.

        Raises
        ------
        Refused
            400 if it is too early, 406 if the whole is not what it should be.
        """
        if upload.state == State.OPEN:
            upload = self._as_told(upload, size, count)
            root = self._whole(upload, proof)
            try:
                upload, won = self.ledger.store(upload, root, self.store.obstacle, forward=self._forward is not None)
            except Ended as error:
                raise self._too_late(upload) from error
            if won:
                get_logger().info("stored", upload=upload.id, place=upload.place, bytes=upload.size)
        elif (size is not None and size != upload.size) or (proof and not self._is_of(upload, proof)):
            raise Refused(406, "this upload is stored already, and is another one")
        return self.finish(upload)

    def finish(self, upload: Upload) -> Upload:
        """Let the store do its part of the end, also after a kill; return the upload as it is then."""
        with self._lock(upload.id, -1):
            upload = self.ledger.get(upload.id) or upload
            if upload.finished:
                return upload
            try:
                self.store.finish(upload.slot)
            except Taken:  # since the place was chosen
                upload = self.ledger.move(upload, self.store.obstacle)
                self.store.finish(upload.slot)
            self.ledger.finish(upload.id)
        self._along.forget(upload.id)
        self._ended(upload.id)
        if self._forward:
            self._forward(upload.id)
        return upload._replace(finished=True)

    def cancel(self, upload: Upload, who: str) -> None:
        """Give an upload up."""
        if upload.state == State.STORED:
            raise Refused(409, "this upload is stored: it is a file now")
        self._end(upload, who, State.CANCELLED, f"by {who}")

    def expire(self) -> None:
        """Let uploads end for which nothing came for too long."""
        for upload in self.ledger.overdue():
            self._end(upload, "intake", State.EXPIRED, "nothing came for too long")

    def recover(self) -> None:
        """Go on with what a kill has interrupted."""
        for upload in self.ledger.unfinished():
            try:
                self.finish(upload)
            except UserError as error:
                get_logger().error("can't be finished", upload=upload.id, reason=str(error))

    def _end(self, upload: Upload, who: str, state: State, reason: str) -> None:
        if self.ledger.end(upload.id, who, state, reason):
            self._along.forget(upload.id)
            self._ended(upload.id)
            self.store.drop(upload.slot)

    def _as_told(self, upload: Upload, size: int | None, count: int | None) -> Upload:
        """Return an upload with its exact size, if what the client says of it is possible."""
        if size is None:
            if not upload.exact:
                raise Refused(400, "the size is needed now: give fileSize")
        elif upload.exact and size != upload.size:
            raise Refused(406, f"{size} bytes are not the {upload.size} that were announced")
        elif size > upload.size:
            raise Refused(400, f"{size} bytes are more than the {upload.size} that are taken without announcement")
        else:
            upload = upload._replace(size=size, exact=True)
        if count is not None and count != upload.chunk_count:
            raise Refused(
                400, f"{upload.size} bytes are {upload.chunk_count} chunks of {upload.chunk_size}, not {count}"
            )
        return upload

    def _whole(self, upload: Upload, proof: Proof | None) -> str:
        """Return the tree digest, once everything is there and right."""
        found = self.ledger.chunks(upload.id)
        if wrong := missing(upload, found):
            first = ", ".join(f"{a}-{b}" if b > a else str(a) for a, b in wrong[:5])
            raise Refused(400, f"{sum(b - a + 1 for a, b in wrong)} chunks are missing yet, first {first}")
        if any(chunk.length != upload.length(chunk.number) for chunk in found) or len(found) != upload.chunk_count:
            raise Refused(406, f"the chunks that came are not those of {upload.size} bytes")
        root = tree(chunk.blake3 for chunk in found)
        if proof is None:
            return root
        right = root if proof.kind == Kind.TREE else self._plain(upload, proof.kind)
        if not is_same(proof.digest, right):
            raise Refused(406, f"the whole is not what was sent: its {proof.kind} is {right}")
        return root

    def _plain(self, upload: Upload, kind: Kind) -> str:
        if not self.store.readable:
            raise Refused(400, "this store can prove the whole by its tree digest alone")
        return self._along.digest(upload._replace(digest=kind))

    def _is_of(self, upload: Upload, proof: Proof) -> bool:
        if proof.kind == Kind.TREE:
            return is_same(proof.digest, upload.tree)
        hasher = new_hasher(proof.kind, self._key)
        for block in self.store.read(upload.slot, 0, upload.size):
            hasher.update(block)
        return is_same(proof.digest, hasher.hexdigest())

    def _too_late(self, upload: Upload) -> Refused:
        current = self.ledger.get(upload.id)
        state = current.state if current else "gone"
        return Refused(409 if state == State.STORED else 410, f"this upload is {state} already")

    def _lock(self, upload: str, number: int) -> threading.Lock:
        """Return the lock of a chunk; a few share one."""
        return self._locks[hash((upload, number)) % LOCKS]


def missing(upload: Upload, found: Sequence[Chunk]) -> list[tuple[int, int]]:
    """Return the first and last numbers of each gap between the chunks that are there."""
    gaps, following = [], 0
    for chunk in found:
        if chunk.number > following:
            gaps.append((following, chunk.number - 1))
        following = chunk.number + 1
    if following < upload.chunk_count:
        gaps.append((following, upload.chunk_count - 1))
    return gaps


def check_name(name: str) -> None:
    """Refuse names that lead out of their owner's folder, or hide there."""
    if len(name.encode(errors="replace")) > LONGEST_PATH:
        raise Refused(400, f"{name[:200]!a}… is too long a name: {LONGEST_PATH} bytes are taken")
    for part in name.split("/"):
        if not part or part[0] == "." or "\\" in part or not part.isprintable() or len(part.encode()) > LONGEST_NAME:
            raise Refused(400, f"{name[:200]!a} is no name for a file: give a relative path without hidden parts")
