"""Which algorithms there are: the built-in ones, and those that other installed packages bring.

A package brings one by an entry point of the group `mini_stream.algorithms` that names a module with `update`. It is
imported only when it is chosen: a broken one is nobody else's trouble.
"""

import difflib
import importlib
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

from aps_mini_apps.sirt.algorithms._contract import ModuleAlgorithm

GROUP = "mini_stream.algorithms"

BUILT_IN = ("sirt", "ossirt", "mlem", "osem", "cgls", "fbp", "tv")


def names() -> list[str]:
    """Return the names of all algorithms: built-in ones first, then the plug-ins in alphabetical order."""
    return [*BUILT_IN, *sorted(_plugins())]


def load_algorithm(name: str = "sirt", parameters: Mapping[str, Any] | None = None) -> ModuleAlgorithm:
    """Return the algorithm called `name`, with `parameters` in place of its defaults.

    Raises
    ------
    ValueError
        If there is none, it is a plug-in that cannot be imported, or a parameter is wrong.
    """
    return ModuleAlgorithm(name, _import(name), parameters)


def describe(name: str) -> tuple[str, str]:
    """Return the parameters of an algorithm with their defaults, and the first line of its documentation."""
    module = _import(name)
    about = ModuleAlgorithm(name, module).about()
    settings = (f"{key.removeprefix('parameter_')}={value}" for key, value in about.items() if key != "algorithm")
    return " ".join(settings), (module.__doc__ or "").strip().partition("\n")[0]


def _plugins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP) if point.name not in BUILT_IN}


def _import(name: str) -> ModuleType:
    if name in BUILT_IN:
        return importlib.import_module(f"aps_mini_apps.sirt.algorithms.{name}")
    plugins = _plugins()
    if name not in plugins:
        near = difflib.get_close_matches(name, [*BUILT_IN, *plugins], n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(names())}, or a file NAME.py"
        raise ValueError(f"no algorithm is called {name!r}; {hint}")
    try:
        module: ModuleType = plugins[name].load()
    except Exception as error:
        raise ValueError(
            f"algorithm {name} cannot be loaded from {_origin(plugins[name])}: {type(error).__name__}: {error}"
        ) from error
    return module


def _origin(plugin: EntryPoint) -> str:
    package = plugin.dist.name if plugin.dist else "an unknown package"
    return f"{plugin.value} of {package}"
