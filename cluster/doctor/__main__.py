import sys

from cluster.doctor.check import main

sys.exit(main())
