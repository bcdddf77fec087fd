"""A compact jBOT trainer: self-distillation pre-training on LHC jets (arXiv:2601.11719).

For those who only want the embedding: :func:`jbot.load` and :class:`jbot.JetEmbedding`, see docs/encoder.md.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jbot.encoder.load import Encoder, load
    from jbot.encoder.sklearn import JetEmbedding

    __version__: str

#: Part of every trial id. Raise it when a change makes the same Config train differently, or changes a default.
TRAINER_VERSION = "4"

__all__ = ["TRAINER_VERSION", "Encoder", "JetEmbedding", "__version__", "load"]

_HOMES = {"Encoder": "jbot.encoder.load", "load": "jbot.encoder.load", "JetEmbedding": "jbot.encoder.sklearn"}


def __getattr__(name: str) -> Any:
    """Import what needs torch or scikit-learn when it is first used, so that `import jbot` stays light."""
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("jbot-studies")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
