"""``python -m cluster.generate``: see cluster.scheduling.generate."""

import sys

from cluster.scheduling.generate import main

if __name__ == "__main__":
    sys.exit(main())
