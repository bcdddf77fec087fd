"""Jets as a tensor without a copy: trials of one node read the same memory."""

import warnings

import numpy as np
import torch


def shared_tensor(array: np.ndarray) -> torch.Tensor:
    """A CPU tensor on the memory of an array, which may be read-only, as arrays out of Ray's object store are.

    The tensor must only be read (`index_select`, `.to`, slices of it): writing into read-only memory, which torch
    does not know of, would change the jets of every trial on the node or end the process.

    Parameters
    ----------
    array : C-contiguous numpy array of numbers
        E.g. `JetData.particles`, (jet, 30, 4) float32.
    """
    if not array.flags.c_contiguous or array.dtype.kind not in "fiu":
        raise ValueError(f"only contiguous arrays of numbers are shared, got dtype {array.dtype}, {array.strides=}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)
        return torch.from_numpy(array)
