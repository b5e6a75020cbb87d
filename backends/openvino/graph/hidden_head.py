"""Graphs of a recurrent draft head, from its weights and the embeddings and head of its target's graph.

begin   hidden.L [n, width] of each layer L -> states [n, width]
step    states [n, width], tokens [n] -> logits [n, columns], new_states [n, width], next_tokens [n] (ids of
        the likeliest columns), confidences [n] (their probabilities)

`models/recurrent.py` has the formulas. Weights stay int8, with their scales a row; the runtime reads them so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset15 as ops
from specport.backends.openvino.graph import surgery

from specport.errors import ModelError
from specport.models.recurrent import EPSILON, SCALE, Recurrent

STATES, TOKENS = "states", "tokens"  # inputs of a step
LOGITS, NEW_STATES, NEXT, CONFIDENCES = "logits", "new_states", "next_tokens", "confidences"
_LAST = np.int64(-1)

Weights = Mapping[str, NDArray[Any]]


def begin_graph(shape: Recurrent, weights: Weights) -> ov.Model:
    """Return the graph of the first states."""
    inputs = [_parameter(f"hidden.{layer}", [-1, shape.width], np.float32) for layer in shape.layers]
    scaled = _times(ops.concat([_norm(hidden) for hidden in inputs], -1), weights["enter.gain"])
    return ov.Model([_named(_product(scaled, weights, "enter"), STATES)], inputs, "head_begin")


def step_graph(
    shape: Recurrent, weights: Weights, target: ov.Model, columns: Sequence[int] | None
) -> ov.Model:
    """Return the graph of a step. columns: ids of the columns of the logits; None = all.

    Raises ModelError where the target's graph has another form, or hidden states of another width.
    """
    states, tokens = _parameter(STATES, [-1, shape.width], np.float32), _parameter(TOKENS, [-1], np.int64)
    embedding = _float32(surgery.embedded(target, tokens.output(0)))
    head = _float32(surgery.head_weight(target, columns))
    widths = {output.get_partial_shape()[-1].get_length() for output in (embedding, head)}
    if widths != {shape.width}:
        raise ModelError(f"the draft head is {shape.width} wide, its target {max(widths)}")
    parts = [
        _times(_norm(states), weights["state.gain"]),
        _times(_norm(embedding.get_node()), weights["token.gain"]),
    ]
    y = ops.add(_times(states, weights["keep"]), _product(ops.concat(parts, -1), weights, "join"))
    for i in range(shape.blocks):
        up = _product(_times(_norm(y), weights[f"block.{i}.gain"]), weights, f"block.{i}.up")
        lengths = ops.constant(np.array([shape.inner, shape.inner], dtype=np.int64))
        gate, value = ops.variadic_split(up, ops.constant(_LAST), lengths).outputs()
        y = ops.add(y, _product(ops.multiply(ops.swish(gate), value), weights, f"block.{i}.down"))
    logits = ops.matmul(_times(_norm(y), weights["out.gain"]), head, False, True)
    top = ops.topk(logits, ops.constant(np.int64(1)), -1, "max", "value", index_element_type="i64")
    total = ops.reduce_sum(ops.exp(ops.subtract(logits, top.output(0))), ops.constant(_LAST), True)
    best: ov.Output = top.output(1)
    if columns is not None:
        best = surgery.gather(ops.constant(np.asarray(columns, dtype=np.int64)).output(0), best)
    one = ops.constant(np.float32(1.0))
    results = [
        _named(logits, LOGITS),
        _named(y, NEW_STATES),
        _named(ops.squeeze(best, ops.constant(_LAST)), NEXT),
        _named(ops.squeeze(ops.divide(one, total), ops.constant(_LAST)), CONFIDENCES),
    ]
    return ov.Model(results, [states, tokens], "head_step")


def _parameter(name: str, shape: Sequence[int], dtype: Any) -> ov.Node:
    node = ops.parameter(list(shape), dtype, name=name)
    node.output(0).set_names({name})
    return node


def _float32(output: ov.Output) -> ov.Output:
    is_float32 = output.get_element_type() == ov.Type.f32
    return output if is_float32 else ops.convert(output, np.float32).output(0)


def _named(node: ov.Node, name: str) -> ov.Node:
    node.output(0).set_names({name})
    return ops.result(node)


def _norm(x: ov.Node) -> ov.Node:
    """Return x / sqrt(mean(x^2) + EPSILON)."""
    mean = ops.reduce_mean(ops.multiply(x, x), ops.constant(_LAST), True)
    root = ops.sqrt(ops.add(mean, ops.constant(np.float32(EPSILON))))
    return ops.divide(x, root)


def _times(x: ov.Node, gain: NDArray[Any]) -> ov.Node:
    return ops.multiply(x, ops.constant(gain.reshape(1, -1).astype(np.float32)))


def _product(x: ov.Node, weights: Weights, name: str) -> ov.Node:
    """Return x times a transposed int8 matrix, in the form that the runtime keeps compressed."""
    matrix = ops.convert(ops.constant(weights[name]), np.float16)
    scaled = ops.multiply(matrix, ops.constant(weights[name + SCALE]))
    return ops.matmul(x, ops.convert(scaled, np.float32), False, True)
