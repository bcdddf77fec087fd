"""``python -m cluster.launch``: see cluster.deploy.launch_files."""

import sys

from cluster.deploy.launch_files import main

if __name__ == "__main__":
    sys.exit(main())
