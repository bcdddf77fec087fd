"""Trials to packs to Ray Tune, or inline."""
