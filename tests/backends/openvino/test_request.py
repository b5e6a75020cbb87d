"""The requests of compiled graphs: what becomes of callers' arrays and of bound tensors."""

from __future__ import annotations

import numpy as np
import openvino as ov
import pytest
from openvino import opset15 as ops
from specport.backends.openvino.request import Request
from specport.quantize.convert.openvino_core import core


@pytest.fixture(scope="module")
def doubled() -> ov.CompiledModel:
    """A graph that doubles its input x."""
    x = ops.parameter([-1], np.float32, name="x")
    x.output(0).set_names({"x"})
    result = ops.result(ops.multiply(x, ops.constant(np.float32(2))))
    result.output(0).set_names({"y"})
    return core().compile_model(ov.Model([result], [x], "doubled"), "CPU")


def test_callers_arrays_are_only_read(doubled: ov.CompiledModel) -> None:
    request = Request(doubled)
    given = [np.array(values, np.float32) for values in ([1, 2], [3, 4], [5, 6, 7], [8, 9])]
    kept = [array.copy() for array in given]
    for array in given:
        request({"x": array, "unknown": array})
        np.testing.assert_array_equal(request.output("y").data, 2 * array)
    for array, before in zip(given, kept, strict=True):
        np.testing.assert_array_equal(array, before)


def test_an_array_with_gaps_is_read_in_its_order(doubled: ov.CompiledModel) -> None:
    request = Request(doubled)
    request({"x": np.arange(6, dtype=np.float32)[::-2]})
    np.testing.assert_array_equal(request.output("y").data, [10, 6, 2])


@pytest.mark.parametrize("by_name", [True, False])
def test_a_call_after_bind_is_read_from_the_call(doubled: ov.CompiledModel, by_name: bool) -> None:
    request = Request(doubled)
    request({"x": np.array([1, 2], np.float32)})
    bound = np.array([5, 6], np.float32)
    request.bind("x" if by_name else doubled.input("x"), ov.Tensor(bound, shared_memory=True))
    request({})
    np.testing.assert_array_equal(request.output("y").data, [10, 12])
    request({"x": np.array([3, 4], np.float32)})
    np.testing.assert_array_equal(request.output("y").data, [6, 8])
    np.testing.assert_array_equal(bound, [5, 6])
