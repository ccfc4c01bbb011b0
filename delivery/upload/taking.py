"""Files that lie here and are to be uploaded: prepared by their path, cut and stored by a job that survives kills."""

from collections.abc import Callable, Sequence
from pathlib import Path

from delivery.files.roots import Found, Root
from delivery.files.version import SourceChanged, Stamp
from delivery.people.accounts import Person
from delivery.upload.digests import Kind
from delivery.upload.intake import Intake, Refused
from delivery.upload.ledger import State, Upload
from delivery.upload.sender import FileSource
from ministream.base.errors import UserError
from ministream.base.log import get_logger


class Taking:
    """Uploads of files that lie here.

    Parameters
    ----------
    intake
        Takes them.
    folders
        Below which they must lie.
    settle
        Seconds for which nobody must have written to them.
    start
        Starts the job that calls `take` with an upload's name.
    """

    def __init__(self, intake: Intake, folders: Sequence[Path], settle: float, start: Callable[[str], None]) -> None:
        self._intake, self._start = intake, start
        self._roots = [Root(folder, settle=settle) for folder in folders]

    def begin(self, person: Person, path: str, chunk_size: int) -> Upload:
        """Announce a file by its path, absolute or below a root; a job does the rest.

        Raises
        ------
        Refused
            400 if it may not leave: not below a root, hidden, a link, half-written.
        """
        root, found = self._find(path)
        key = f"{root.folder}/{found.path} {found.stamp}"
        more = {"root": str(root.folder), "path": found.path, "stamp": list(found.stamp)}
        upload = self._intake.announce(
            person, found.path, found.stamp.size, chunk_size, digest=Kind.TREE, key=key[-200:], door="root", more=more
        )
        self._start(upload.id)
        return upload

    def take(self, name: str, _attempt: int) -> str:
        """Store an upload's file, from where a kill has interrupted that; returns why it can't be, or nothing."""
        upload = self._intake.ledger.get(name)
        if upload is None or upload.state != State.OPEN:
            return ""
        root = next((root for root in self._roots if str(root.folder) == upload.more["root"]), None)
        try:
            if root is None:
                raise UserError(f"{upload.more['root']} is not offered any more")
            self._cut(upload, root)
            self._intake.finalise(upload, None)
        except SourceChanged as error:
            self._intake.cancel(upload, "intake")
            get_logger().warning("not taken", upload=name, reason=str(error))
        except UserError as error:
            return str(error)
        return ""

    def _cut(self, upload: Upload, root: Root) -> None:
        stamp = Stamp(*upload.more["stamp"])
        held = {chunk.number for chunk in self._intake.ledger.chunks(upload.id)}
        with root.open(upload.more["path"], stamp) as descriptor:
            source = FileSource(descriptor, Path(upload.more["path"]))
            for number in range(upload.chunk_count):
                if number not in held:
                    start, length = number * upload.chunk_size, upload.length(number)
                    self._intake.keep(upload, number, length, source.blocks(start, start + length))
        with root.open(upload.more["path"], stamp):  # still the file that it was
            pass

    def _find(self, path: str) -> tuple[Root, Found]:
        reason = "no folder is configured whose files may be prepared"
        for root in self._roots:
            relative = path.removeprefix(f"{root.folder}/")
            if relative.startswith("/"):
                reason = "it does not lie below a configured root"
                continue
            listing = root.find([relative])
            if listing.files:
                return root, listing.files[0]
            reason = listing.refused[0].reason
        raise Refused(400, f"{path[:200]!a} can't be prepared: {reason}")
