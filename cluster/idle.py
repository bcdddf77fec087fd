"""``python -m cluster.idle``: see cluster.deploy.idle."""

import sys

from cluster.deploy.idle import main

if __name__ == "__main__":
    sys.exit(main())
