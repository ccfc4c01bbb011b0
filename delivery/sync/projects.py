"""The folders of projects: files are offered from `bar`, and end in `archive`, from where nothing is offered."""

import errno
import os
import shutil
from itertools import count
from pathlib import Path

from delivery.files.aside import written_aside
from delivery.files.roots import Root
from delivery.files.version import FileVersion, SourceChanged, digest
from delivery.settings import NAME
from ministream.base.errors import UserError

OFFERED, ARCHIVE = "bar", "archive"


class UnknownProject(UserError):  # noqa: N818 - says what is wrong
    """There is no project of that name."""


class Projects:
    """The projects in a folder.

    Parameters
    ----------
    folder
        Folder of projects.
    settle
        Seconds without a write after which a file counts as finished.
    elsewhere
        Folders that are offered in place of a project's `bar`, by project.
    """

    def __init__(self, folder: Path, settle: float, elsewhere: dict[str, Path] | None = None) -> None:
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder; make it, with {OFFERED}/ in a folder for each project")
        self._folder, self._settle, self._elsewhere = folder.resolve(), settle, elsewhere or {}
        for place in self._elsewhere.values():
            Root(place)

    def names(self) -> list[str]:
        """Return the projects that there are."""
        inside = [path.name for path in self._folder.iterdir() if NAME.fullmatch(path.name)]
        return sorted({*self._elsewhere, *(name for name in inside if (self._folder / name / OFFERED).is_dir())})

    def root(self, project: str) -> Root:
        """Return the folder that a project's files are offered from.

        Raises
        ------
        UnknownProject
            If there is none, or a link leads out of the folder of projects.
        """
        folder = self._elsewhere.get(project) or self._inside(project) / OFFERED
        if not folder.is_dir() or (project not in self._elsewhere and not self._holds(folder)):
            raise UnknownProject(f"no project is called {project!r} here; its files would lie in {project}/{OFFERED}")
        return Root(folder, settle=self._settle)

    def archive(self, project: str, root: Root, version: FileVersion) -> Path:
        """Move a file to a project's archive, beside what bears its name there already, and return where it is.

        Raises
        ------
        SourceChanged
            If the file is no longer that version; the new one stays.
        UserError
            If it can't be moved; it stays, too.
        """
        folder = self._inside(project) / ARCHIVE
        source, place = root.folder / version.path, _free(folder / version.path)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            if not self._holds(place.parent):
                raise UserError(f"{place.parent} leads out of {self._folder}; make it a folder")
            with root.open(version.path, version.stamp):
                _move(source, place, version)
        except OSError as error:
            raise UserError(f"{source} cannot be moved to {folder}: {error.strerror}; it stays where it is") from error
        return place

    def _inside(self, project: str) -> Path:
        if not NAME.fullmatch(project):
            raise UnknownProject("a project's name has letters, digits and . _ - only")
        return self._folder / project

    def _holds(self, folder: Path) -> bool:
        return folder.resolve().is_relative_to(self._folder)


def _free(place: Path) -> Path:
    """Return `place`, or the first of `name (2)`, `name (3)`, … that is free."""
    names = (place.with_name(f"{place.stem} ({number}){place.suffix}") for number in count(2))
    return place if not os.path.lexists(place) else next(name for name in names if not os.path.lexists(name))


def _move(source: Path, place: Path, version: FileVersion) -> None:
    try:
        _rename(source, place, version)
    except OSError as error:
        if error.errno != errno.EXDEV:  # which two mounts of one file system are, too: a look at st_dev tells nothing
            raise
        _carry_over(source, place, version)


def _rename(source: Path, place: Path, version: FileVersion) -> None:
    source.rename(place)
    if place.stat().st_ino != version.inode and not source.exists():  # replaced between the look and the rename
        place.rename(source)
        raise SourceChanged(f"{version.path} was replaced while it was archived")


def _carry_over(source: Path, place: Path, version: FileVersion) -> None:
    """Copy to another file system, and delete the source only if the copy is it."""
    with written_aside(place, place.with_name(f".{place.name}.moving")) as aside:
        shutil.copy2(source, aside)
        with aside.open("rb") as copy:
            if digest(copy.fileno(), version.path).blake3 != version.blake3:
                raise SourceChanged(f"{version.path} has changed while it was archived")
    source.unlink()
