"""Arrays in the core: the array API (https://data-apis.org/array-api), and the transfer to the host."""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import is_numpy_array, is_torch_array, to_device
from numpy.typing import NDArray

Array = Any  # an array-API array; the standard defines no common static type


def to_host(array: Array) -> NDArray[Any]:
    """Return the array as a NumPy array; wait for its device."""
    if is_numpy_array(array):
        return np.asarray(array)
    return np.from_dlpack(to_device(array, "cpu") if is_torch_array(array) else array)
