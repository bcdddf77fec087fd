import sys

from cluster.doctor.command import main

sys.exit(main())
