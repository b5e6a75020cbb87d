"""Graph of a module for multi-token prediction: a decoder of one layer, joined with its target's graph.

In the paged form, with what `surgery.to_paged` says, and

    states [tokens, width]   float32, what the module reads with each token (`Row.states`)

`models/kinds/mtp.py` has the formulas. Embeddings and head are the target's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import openvino as ov
from openvino import opset15 as ops
from specport.backends.openvino.graph import surgery
from specport.backends.openvino.graph.nodes import float32, norm, parameter, product, times

from specport.core.ports import HEAD_INPUT
from specport.errors import ModelError
from specport.models.kinds.mtp import Join
from specport.models.kinds.recurrent import quantized

STATES = "states"


def to_paged(
    decoder: ov.Model,
    target: ov.Model,
    join: Join,
    columns: Sequence[int] | None,
    *,
    rounded: bool,
    head_input: bool,
) -> ov.Model:
    """Rewrite the decoder, a stateful model, in place and return it. The target's graph is read only.

    columns: ids of the columns of the logits; None = all. rounded: whether the join is rounded to int8.
    head_input: as for `surgery.to_paged`.
    Raises ModelError where the target has another width or a graph of another form.
    """
    head = float32(surgery.head_weight(target, columns))
    _check(head, join)
    surgery.replace_head(decoder, head)
    paged = surgery.to_paged(decoder, (HEAD_INPUT,), head_input=head_input)
    (ids,) = (node for node in paged.get_parameters() if "input_ids" in node.output(0).get_names())
    embedded = float32(surgery.embedded(target, ids.output(0)))
    _check(embedded, join)
    states = parameter(STATES, [-1, join.width], np.float32)
    parts = [
        times(norm(embedded.get_node(), join.epsilon), join.token_gain),
        times(norm(states, join.epsilon), join.state_gain),
    ]
    joined = ops.concat(parts, -1)
    if rounded:
        read = product(joined, *quantized(join.weight.astype(np.float32)))
    else:
        weight = float32(ops.constant(join.weight).output(0))
        read = ops.matmul(joined, weight, False, True)
    surgery.replace_embeddings(paged, ops.unsqueeze(read, ops.constant(np.int64(1))).output(0))
    paged.add_parameters([states])
    paged.validate_nodes_and_infer_types()
    return paged


def _check(table: ov.Output, join: Join) -> None:
    width = table.get_partial_shape()[-1].get_length()
    if width != join.width:
        raise ModelError(f"the module for multi-token prediction is {join.width} wide, its target {width}")
