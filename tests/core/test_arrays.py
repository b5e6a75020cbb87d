"""Arrays come to the host as NumPy arrays, of any type and library."""

from __future__ import annotations

import numpy as np
import pytest

from specport.core.arrays import to_host


def test_numpy_stays_what_it_is() -> None:
    array = np.arange(3)
    assert to_host(array) is array


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16", "int64", "bool"])
def test_torch(kind: str) -> None:
    torch = pytest.importorskip("torch")
    found = to_host(torch.tensor([0.0, 1.0, 2.5], dtype=getattr(torch, kind)))
    assert found.dtype == ("float32" if kind == "bfloat16" else kind)  # NumPy has no bf16
    assert found.tolist() == torch.tensor([0.0, 1.0, 2.5], dtype=getattr(torch, kind)).tolist()
