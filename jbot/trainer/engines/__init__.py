"""Engines that compute encoder and head in a step: plain torch, the C++ kernel, torch.compile, CUDA graphs."""
