"""Trained encoders for other work: load, embed, import."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jbot.encoder.load import Encoder, EncoderError
    from jbot.encoder.sklearn import JetEmbedding

__all__ = ["Encoder", "EncoderError", "JetEmbedding"]


def __getattr__(name: str) -> Any:
    """Import each when it is first used: torch, then scikit-learn, take seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "jbot.encoder.sklearn" if name == "JetEmbedding" else "jbot.encoder.load"
    return getattr(importlib.import_module(home), name)
