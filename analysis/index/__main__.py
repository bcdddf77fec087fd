import sys

from analysis.index.page import main

sys.exit(main())
