"""Statistics: arrays in, numbers out; no files, no plots, no sentences."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
