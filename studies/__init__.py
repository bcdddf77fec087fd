"""One file per question. What such a file needs:

from studies import Contrast, Study, main
"""

import importlib
import signal
import threading
from typing import TYPE_CHECKING, Any

import search_spaces as search_spaces  # first: it finds our packages whatever folders lie beside a study file

if TYPE_CHECKING:
    from jbot.store.plan import Contrast
    from studies.presets import SMALL
    from studies.runner.cli import main
    from studies.runner.execute import run
    from studies.runner.options import RunOptions
    from studies.runner.study import Search, Study

__all__ = ["SMALL", "Contrast", "RunOptions", "Search", "Study", "main", "run"]

_HOMES = {
    "Contrast": "jbot.store.plan",
    "RunOptions": "studies.runner.options",
    "SMALL": "studies.presets",
    "Search": "studies.runner.study",
    "Study": "studies.runner.study",
    "main": "studies.runner.cli",
    "run": "studies.runner.execute",
}


def __getattr__(name: str) -> Any:
    """Each is imported when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    before = signal.getsignal(signal.SIGINT)
    own = before is signal.default_int_handler and threading.current_thread() is threading.main_thread()
    if own:  # imports may take seconds: Ctrl-C ends them without a traceback
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        return getattr(importlib.import_module(_HOMES[name]), name)
    finally:
        if own:
            signal.signal(signal.SIGINT, before)
