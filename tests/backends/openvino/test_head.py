"""Rows of a head that was cut, out of the graph's own compressed weights."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

ov = pytest.importorskip("openvino")

from openvino import opset15 as ops  # noqa: E402
from specport.backends.openvino.graph import surgery  # noqa: E402
from specport.backends.openvino.request import HeadRows  # noqa: E402
from specport.quantize.convert.openvino_core import core  # noqa: E402


def head_graph(*, capped: bool) -> tuple[ov.Model, NDArray[np.float32]]:
    """A head of 4-bit weights in groups, and these weights."""
    rng = np.random.default_rng(0)
    values = rng.integers(-8, 8, (16, 2, 4)).astype(np.int8)
    scales = rng.random((16, 2, 1)).astype(np.float16)
    read = ops.parameter([-1, 8], np.float32, name="read")
    packed = ov.Tensor(ov.Type.i4, ov.Shape([16, 2, 4]))
    flat = values.reshape(-1) & 15
    packed.data[:] = (flat[::2] | flat[1::2] << 4).astype(packed.data.dtype).reshape(packed.data.shape)
    weight = ops.multiply(ops.convert(ops.constant(packed), np.float16), ops.constant(scales))
    whole = ops.reshape(weight, np.array([16, 8]), special_zero=False)
    logits = ops.matmul(read, ops.convert(whole, np.float32), False, True)
    if capped:
        logits = ops.tanh(logits)
    logits.output(0).set_names({"logits"})
    return ov.Model([logits], [read]), (values * scales.astype(np.float32)).reshape(16, 8)


def test_rows_of_a_head_in_groups_of_4_bits() -> None:
    model, weights = head_graph(capped=False)
    rows = surgery.head_rows(model)
    assert rows is not None
    found = HeadRows(core().compile_model(rows, "CPU"))([5, 0, 15])
    assert np.allclose(found, weights[[5, 0, 15]], atol=1e-2)


def test_a_head_with_a_soft_cap_gives_no_rows() -> None:
    model, _ = head_graph(capped=True)
    assert surgery.head_rows(model) is None
