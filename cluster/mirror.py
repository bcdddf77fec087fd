"""``python -m cluster.mirror``: see cluster.tracking.mirror."""

import sys

from cluster.tracking.mirror import main

if __name__ == "__main__":
    sys.exit(main())
