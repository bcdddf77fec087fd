"""A compact jBOT trainer: self-distillation pre-training on LHC jets (arXiv:2601.11719)."""

#: Part of every trial id. Raise it when a change makes the same Config train differently.
TRAINER_VERSION = "2"
