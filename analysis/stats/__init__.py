"""Statistics: arrays in, numbers out; no files, no plots, no sentences."""
