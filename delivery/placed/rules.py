"""At which site a file belongs: rules, ours and others'.

A rule makes a judge for each file; the judge sees the file's bytes as they come, then says the place. Another package
adds a rule by an entry point of the group `delivery.placed_rules`, whose function takes what stands after the colon of
``--rule NAME:WORDS``; a function of one `About`, given as ``--rule MODULE:FUNCTION``, is a rule, too.
"""

import importlib
from collections.abc import Callable
from enum import StrEnum
from importlib.metadata import entry_points
from pathlib import Path
from typing import NamedTuple, Protocol

from pydantic import TypeAdapter, ValidationError

from delivery.settings import listed
from ministream.base.errors import UserError
from ministream.base.units import Size

GROUP = "delivery.placed_rules"


class Site(StrEnum):
    """The two sites."""

    ZERO = "zero"
    ONE = "one"

    @property
    def other(self) -> "Site":
        """The site that this one is not."""
        return Site.ONE if self is Site.ZERO else Site.ZERO


class Place(StrEnum):
    """Where a file belongs."""

    ZERO = "zero"
    ONE = "one"
    BOTH = "both"

    def includes(self, site: Site) -> bool:
        """Return whether `site` is to have the file."""
        return self is Place.BOTH or self.value == site.value


class About(NamedTuple):
    """What is known of a file that has come whole: its bytes are at `path`, `size` many."""

    name: str
    size: int
    project: str
    path: Path


class Judge(Protocol):
    """Judges one file."""

    def see(self, block: memoryview) -> None:
        """Take note of the file's next bytes, which are no longer there when this returns."""
        ...

    def place(self, about: About) -> Place | None:
        """Say where the file belongs; None if nothing speaks for one site more than for the other."""
        ...


Rule = Callable[[], Judge]


def find_rule(words: str) -> Rule:
    """Return the rule that a setting names.

    Parameters
    ----------
    words
        ``bits``: to `zero` if there are more zeros than ones; ``size:100MB``: up to that size to `zero`;
        ``type:h5,tif`` and ``project:raw,calibration``: these to `zero`, all others to `one`; the name of an entry
        point, with words of its own; ``module:function``.

    Raises
    ------
    UserError
        If there is no such rule, or its words are not such as it takes.
    """
    name, _, rest = words.partition(":")
    try:
        if name in _RULES:
            return _RULES[name](rest)
        for point in entry_points(group=GROUP, name=name):
            found: Rule = point.load()(rest)
            return found
        return _function(name, rest)
    except UserError:
        raise
    except ValidationError as error:
        raise UserError(f"rule {words!r}: {error.errors()[0]['msg']}") from error
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"rule {words!r}: {error}") from error


class Bits:
    """More zero bits than one bits: `zero`; fewer: `one`."""

    def __init__(self) -> None:
        from delivery.placed.bits import count_ones

        self._count, self._ones = count_ones, 0

    def see(self, block: memoryview) -> None:
        """Count."""
        self._ones += self._count(block)

    def place(self, about: About) -> Place | None:
        """Compare."""
        zeros = 8 * about.size - self._ones
        return None if zeros == self._ones else Place.ZERO if zeros > self._ones else Place.ONE


class Facts:
    """A judge that needs no look at the bytes as they come: `decide` says the place."""

    def __init__(self, decide: Callable[[About], Place | None]) -> None:
        self._decide = decide

    def see(self, block: memoryview) -> None:
        """Look away."""

    def place(self, about: About) -> Place | None:
        """Decide."""
        return self._decide(about)


def _bits(words: str) -> Rule:
    if words:
        raise UserError(f"rule bits takes no words, not {words!r}")
    return Bits


def _size(words: str) -> Rule:
    limit = TypeAdapter(Size).validate_python(words)
    return lambda: Facts(lambda about: _zero_if(about.size <= limit))


def _type(words: str) -> Rule:
    endings = tuple(f".{ending.lstrip('.').lower()}" for ending in _some(words, "type:h5,tif"))
    return lambda: Facts(lambda about: _zero_if(about.name.lower().endswith(endings)))


def _project(words: str) -> Rule:
    projects = _some(words, "project:raw,calibration")
    return lambda: Facts(lambda about: _zero_if(about.project in projects))


def _function(module: str, name: str) -> Rule:
    if not name:
        raise UserError(f"no rule is called {module!r}: there are {', '.join(_RULES)}, and MODULE:FUNCTION")
    function = getattr(importlib.import_module(module), name)

    def decide(about: About) -> Place | None:
        place = function(about)
        return None if place is None else Place(place)

    return lambda: Facts(decide)


def _zero_if(condition: bool) -> Place:
    return Place.ZERO if condition else Place.ONE


def _some(words: str, example: str) -> list[str]:
    if not listed(words):
        raise UserError(f"this rule needs words, such as {example}")
    return listed(words)


_RULES: dict[str, Callable[[str], Rule]] = {"bits": _bits, "size": _size, "type": _type, "project": _project}
