"""``python studies/all.py``: every question under one budget, see studies.runner.campaign."""

import sys

from studies.runner.campaign import run

if __name__ == "__main__":
    sys.exit(run())
