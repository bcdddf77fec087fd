"""``python studies/all.py``: every question under one budget, see studies.runner.campaign."""

import sys

from studies.runner.cli import main_of_all as main

if __name__ == "__main__":
    sys.exit(main())
