"""``python -m jbot.keras_weights``: see jbot.encoder.keras_weights."""

import sys

from jbot.encoder.keras_weights import main

if __name__ == "__main__":
    sys.exit(main())
