"""``python -m jbot.embed``: see jbot.encoder.embed."""

import sys

from jbot.encoder.embed import main

if __name__ == "__main__":
    sys.exit(main())
