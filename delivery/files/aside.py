"""Large files that are there whole or not at all, and of which no kill leaves a half one behind for good.

`whole_or_absent` writes beside them under random names; here the name is given, so that the next try takes the same.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ministream.base.files import explained


@contextmanager
def written_aside(place: Path, aside: Path) -> Iterator[Path]:
    """Yield `aside` to be written to; rename it to `place`, in the same file system, if the block ends well.

    Raises
    ------
    UserError
        If it can't be written.
    """
    try:
        with explained(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            yield aside
            with aside.open("rb") as file:
                os.fsync(file.fileno())
            aside.replace(place)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
