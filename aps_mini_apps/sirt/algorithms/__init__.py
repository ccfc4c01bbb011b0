"""Algorithms: how the projections of a window improve the volume, each in a small file of its own.

They know volumes, sinograms and geometries only through the `Projector`, and arrays only through their operators and
methods, so that one text runs on every back end. A new one is a module with the function `update`: see `_contract`,
and docs/algorithms.md for a user's own file.
"""

from aps_mini_apps.sirt.algorithms._contract import Algorithm, ModuleAlgorithm, Progress, Window, ones
from aps_mini_apps.sirt.algorithms.catalogue import load_algorithm, names
from aps_mini_apps.sirt.projectors.memory import Held

__all__ = ["Algorithm", "Held", "ModuleAlgorithm", "Progress", "Window", "load_algorithm", "names", "ones"]
