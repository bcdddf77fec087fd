"""The training step and the loop around it: torch alone, no files."""
