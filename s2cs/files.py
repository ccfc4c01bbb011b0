"""Files that only their owner may read: keys, tokens, settings of proxies."""

from pathlib import Path

from ministream.base.errors import UserError

PRIVATE_FILE, PRIVATE_FOLDER, PUBLIC_FILE = 0o600, 0o700, 0o644


def make_private_folder(folder: Path) -> None:
    """Make `folder` (mode 0700) where it doesn't exist; refuse one that others may look into.

    Raises
    ------
    UserError
        If it is open to others, is no folder or cannot be made.
    """
    try:
        folder.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
        is_open = folder.stat().st_mode & 0o077
    except OSError as error:
        raise UserError(f"folder {folder} cannot be made: {error.strerror}") from error
    if is_open:
        raise UserError(f"folder {folder} is open to others: close it (chmod 700 {folder}) or name a new one")
