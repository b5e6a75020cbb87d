"""Nodes that graphs of drafting networks are made of: inputs, outputs, norms, products with int8 matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset15 as ops

LAST = np.int64(-1)  # the last axis


def parameter(name: str, shape: Sequence[int], dtype: Any) -> ov.Node:
    """Return an input. shape: -1 = any size."""
    node = ops.parameter(list(shape), dtype, name=name)
    node.output(0).set_names({name})
    return node


def named(node: ov.Node, name: str) -> ov.Node:
    """Return an output of that name."""
    node.output(0).set_names({name})
    return ops.result(node)


def float32(output: ov.Output) -> ov.Output:
    """Return an output converted to float32 where it has another type."""
    is_float32 = output.get_element_type() == ov.Type.f32
    return output if is_float32 else ops.convert(output, np.float32).output(0)


def norm(x: ov.Node, epsilon: float) -> ov.Node:
    """Return x / sqrt(mean(x^2) + epsilon), over the last axis."""
    mean = ops.reduce_mean(ops.multiply(x, x), ops.constant(LAST), True)
    root = ops.sqrt(ops.add(mean, ops.constant(np.float32(epsilon))))
    return ops.divide(x, root)


def times(x: ov.Node, gain: NDArray[Any]) -> ov.Node:
    """Return x [n, width] times a vector [width]."""
    return ops.multiply(x, ops.constant(gain.reshape(1, -1).astype(np.float32)))


def product(x: ov.Node, matrix: NDArray[np.int8], scale: NDArray[np.float16]) -> ov.Node:
    """Return x times a transposed int8 matrix, in the form that the runtime keeps compressed.

    matrix: [rows, columns]. scale: [rows, 1].
    """
    scaled = ops.multiply(ops.convert(ops.constant(matrix), np.float16), ops.constant(scale))
    return ops.matmul(x, ops.convert(scaled, np.float32), False, True)
