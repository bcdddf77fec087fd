import sys

from analysis.paper.tables import main

sys.exit(main())
