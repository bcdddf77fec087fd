"""Engines that compute encoder and head in a step: plain torch, the C++ kernel, torch.compile, CUDA graphs."""

ENGINES = ("auto", "plain", "fused", "compiled")
"""auto: on a CPU the C++ kernel, on a GPU torch.compile; plain torch where that is not possible."""
