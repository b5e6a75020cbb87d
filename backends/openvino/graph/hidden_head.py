"""Graphs of a recurrent draft head, from its weights and the embeddings and head of its target's graph.

begin   hidden.L [n, width] of each layer L -> states [n, width]
step    states [n, width], tokens [n] -> logits [n, columns], new_states [n, width], next_tokens [n] (ids of
        the likeliest columns), confidences [n] (their probabilities)

`models/kinds/recurrent.py` has the formulas. Weights stay int8, with their scales a row; so the runtime reads
them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset15 as ops
from specport.backends.openvino.graph import surgery
from specport.backends.openvino.graph.nodes import LAST, float32, named, norm, parameter, product, times

from specport.errors import ModelError
from specport.models.kinds.recurrent import EPSILON, SCALE, Recurrent

STATES, TOKENS = "states", "tokens"  # inputs of a step
LOGITS, NEW_STATES, NEXT, CONFIDENCES = "logits", "new_states", "next_tokens", "confidences"

Weights = Mapping[str, NDArray[Any]]


def begin_graph(shape: Recurrent, weights: Weights) -> ov.Model:
    """Return the graph of the first states."""
    inputs = [parameter(f"hidden.{layer}", [-1, shape.width], np.float32) for layer in shape.layers]
    scaled = times(ops.concat([_norm(hidden) for hidden in inputs], -1), weights["enter.gain"])
    return ov.Model([named(_product(scaled, weights, "enter"), STATES)], inputs, "head_begin")


def step_graph(
    shape: Recurrent, weights: Weights, target: ov.Model, columns: Sequence[int] | None
) -> ov.Model:
    """Return the graph of a step. columns: ids of the columns of the logits; None = all.

    Raises ModelError where the target's graph has another form, or hidden states of another width.
    """
    states, tokens = parameter(STATES, [-1, shape.width], np.float32), parameter(TOKENS, [-1], np.int64)
    embedding = float32(surgery.embedded(target, tokens.output(0)))
    head = float32(surgery.head_weight(target, columns))
    widths = {output.get_partial_shape()[-1].get_length() for output in (embedding, head)}
    if widths != {shape.width}:
        raise ModelError(f"the draft head is {shape.width} wide, its target {max(widths)}")
    parts = [
        times(_norm(states), weights["state.gain"]),
        times(_norm(embedding.get_node()), weights["token.gain"]),
    ]
    y = ops.add(times(states, weights["keep"]), _product(ops.concat(parts, -1), weights, "join"))
    for i in range(shape.blocks):
        up = _product(times(_norm(y), weights[f"block.{i}.gain"]), weights, f"block.{i}.up")
        lengths = ops.constant(np.array([shape.inner, shape.inner], dtype=np.int64))
        gate, value = ops.variadic_split(up, ops.constant(LAST), lengths).outputs()
        y = ops.add(y, _product(ops.multiply(ops.swish(gate), value), weights, f"block.{i}.down"))
    logits = ops.matmul(times(_norm(y), weights["out.gain"]), head, False, True)
    top = ops.topk(logits, ops.constant(np.int64(1)), -1, "max", "value", index_element_type="i64")
    total = ops.reduce_sum(ops.exp(ops.subtract(logits, top.output(0))), ops.constant(LAST), True)
    best: ov.Output = top.output(1)
    if columns is not None:
        best = surgery.gather(ops.constant(np.asarray(columns, dtype=np.int64)).output(0), best)
    one = ops.constant(np.float32(1.0))
    results = [
        named(logits, LOGITS),
        named(y, NEW_STATES),
        named(ops.squeeze(best, ops.constant(LAST)), NEXT),
        named(ops.squeeze(ops.divide(one, total), ops.constant(LAST)), CONFIDENCES),
    ]
    return ov.Model(results, [states, tokens], "head_step")


def _norm(x: ov.Node) -> ov.Node:
    return norm(x, EPSILON)


def _product(x: ov.Node, weights: Weights, name: str) -> ov.Node:
    return product(x, weights[name], weights[name + SCALE])
