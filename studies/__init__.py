"""One file per question. What such a file needs::

from studies import Contrast, Study, main
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jbot.store.plan import Contrast
    from studies.runner.execute import main, run
    from studies.runner.search import Search
    from studies.runner.study import Study

__all__ = ["Contrast", "Search", "Study", "main", "run"]

_HOMES = {
    "Contrast": "jbot.store.plan",
    "Search": "studies.runner.search",
    "Study": "studies.runner.study",
    "main": "studies.runner.execute",
    "run": "studies.runner.execute",
}


def __getattr__(name: str) -> Any:
    """Each is imported when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
