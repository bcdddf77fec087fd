"""``python -m analysis.pictures``: see analysis.plots.trial_details."""

import sys

from analysis.plots.trial_details import main

if __name__ == "__main__":
    sys.exit(main())
