"""How fast the trainer is on this machine, as ratios within one run: ``make bench``."""
