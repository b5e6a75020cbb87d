"""Let a paged graph read pairs of tokens. `models.kinds.pipo.PairWeights` has the formulas.

    input_ids  [tokens]   the first token of each pair
    SECONDS    [tokens]   int64, the second one; the size of the vocabulary stands for PAD

Ids of pairs do not reach the graph: on processors the runtime computes with 32 bits, where they do not fit.
"""

from __future__ import annotations

import numpy as np
import openvino as ov
from openvino import opset15 as ops
from specport.backends.openvino.graph import surgery
from specport.backends.openvino.graph.nodes import float32, parameter, product

from specport.errors import ModelError
from specport.models.kinds.pipo import Pairs
from specport.models.kinds.recurrent import quantized

SECONDS = "second_ids"


def install_pairs(paged: ov.Model, pairs: Pairs, *, rounded: bool) -> None:
    """Let a paged model read pairs. rounded: whether the compressor's matrices are rounded to int8.

    Raises ModelError where the model is of another width.
    """
    weights, width = pairs.weights, pairs.config.width
    (ids,) = (node for node in paged.get_parameters() if "input_ids" in node.output(0).get_names())
    seconds = parameter(SECONDS, [-1], np.int64)
    inside = ops.minimum(seconds, ops.constant(np.int64(pairs.no_second - 1)))
    first = float32(surgery.embedded(paged, ids.output(0)))
    if first.get_partial_shape()[-1].get_length() != width:
        raise ModelError(f"the pair model's decoder is not {width} wide", "train it again")
    padded = ops.unsqueeze(
        ops.equal(seconds, ops.constant(np.int64(pairs.no_second))), ops.constant(np.int64(1))
    )
    second = ops.select(
        padded, ops.constant(weights.pad[None]), float32(surgery.embedded(paged, inside.output(0)))
    )

    def times(x: ov.Node, matrix: np.ndarray) -> ov.Node:
        if rounded:
            return product(x, *quantized(matrix))
        return ops.matmul(x, ops.constant(matrix), False, True)

    folded = times(ops.swish(times(ops.concat([first, second], -1), weights.up)), weights.down)
    total = ops.add(ops.add(first, second), folded)
    surgery.replace_embeddings(paged, ops.unsqueeze(total, ops.constant(np.int64(1))).output(0))
    paged.add_parameters([seconds])
    paged.validate_nodes_and_infer_types()
