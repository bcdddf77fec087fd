"""What the eager operations of a training step move, counted; what it has to compute stands in jbot.trainer.flops."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from jbot.trainer.flops import step_flop

__all__ = ["Traffic", "step_flop", "tensor_bytes"]


class Traffic(TorchDispatchMode):
    """Counts bytes while it is active: each operation reads its inputs and writes its outputs once.

    What operations that are not fused move between themselves, had they no cache. An operation written in place is
    read and written. Views move nothing; a broadcast input counts once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and add its bytes."""
        result = func(*args, **(kwargs or {}))
        if not getattr(func, "is_view", False) and "empty" not in str(func):
            self.bytes += tensor_bytes((args, kwargs, result))
        return result


def tensor_bytes(tree: Any) -> int:
    """Bytes of all tensors in nested tuples, lists and dicts."""
    tensors = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))
    return sum(min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()) for tensor in tensors)
