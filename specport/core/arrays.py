"""Arrays in the core: the array API (https://data-apis.org/array-api), and the transfer to the host."""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_numpy_array, is_torch_array, to_device
from numpy.typing import NDArray

Array = Any  # an array-API array; the standard defines no common static type


def to_host(array: Array) -> NDArray[Any]:
    """Return the array as a NumPy array; wait for its device. bf16 becomes float32: NumPy has no bf16."""
    if is_numpy_array(array):
        return np.asarray(array)
    if not is_torch_array(array):
        return np.from_dlpack(array)
    xp = array_namespace(array)
    host = to_device(array, "cpu")
    return np.from_dlpack(xp.astype(host, xp.float32) if host.dtype == xp.bfloat16 else host)
