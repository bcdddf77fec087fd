"""What a study may vary: named axes over Config fields."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

OURS = ("analysis", "cluster", "jbot", "search_spaces", "studies")


class OurPackages:
    """Finds our packages beside this one, before folders of the same names that lie beside somebody's study file.

    Here, as this package and :mod:`studies` are the first that a study file imports.
    """

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The package of this name where it is ours; any other is found as ever."""
        return PathFinder.find_spec(name, [str(Path(__file__).parent.parent)]) if name in OURS else None


sys.meta_path.insert(0, OurPackages)
