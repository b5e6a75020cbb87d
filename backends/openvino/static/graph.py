"""Turn a stateful OpenVINO IR into one of fixed shapes: what an NPU compiles. Graph surgery only.

The caches become inputs of `capacity` rows, and a forward pass brings `width` new tokens whose rows are
*scattered* to their positions before attention reads them. Exporters append them instead; a token would
then stand in another column while it is new than afterwards, sums would run in another order, and the
same text would give other logits for every split. Inputs, for a capacity of C rows and W new tokens:

    input_ids, position_ids [1, W]   a token's position is its row of the cache as well
    past_key_values.N.key/.value     [1, heads, C, size]; the rows behind the text hold anything finite
    mask.K [1, 1, W, C]              rows of `Static.masks[K]`: what a token at each position may see
    logits_rows [R]                  tokens whose logits are wanted

Outputs: logits [1, R, vocab], `hidden.N` [1, W, size] of all tokens, and `present.N.key/.value`
[1, heads, W, size], the new rows alone, which the caller copies into the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset15 as ops
from openvino._offline_transformations import stateful_to_stateless_transformation
from specport.backends.openvino.graph import surgery as graph
from specport.quantize.convert.openvino_core import core

from specport.errors import ModelError

LOGITS_ROWS = "logits_rows"
PAST, PRESENT = "past_key_values.", "present."


@dataclass(frozen=True)
class Static:
    """A model with its caches as inputs, still of any width.

    masks: [capacity, capacity] for each kind of attention in the model: what is added to the scores.
    """

    model: ov.Model
    masks: list[NDArray[np.generic]]

    @property
    def capacity(self) -> int:
        return int(self.masks[0].shape[0])

    def fixed(self, width: int, num_rows: int) -> ov.Model:
        """A copy that takes `width` tokens and gives `num_rows` rows of logits."""
        model = self.model.clone()
        shapes: dict[str, list[int]] = {}
        for port in model.inputs:
            name, shape = port.any_name, port.get_partial_shape()
            if name == LOGITS_ROWS:
                shapes[name] = [num_rows]
            elif name.startswith("mask."):
                shapes[name] = [1, 1, width, self.capacity]
            elif name.startswith(PAST):
                shapes[name] = [1, shape[1].get_length(), self.capacity, shape[3].get_length()]
                told = [1, shape[1].get_length(), self.capacity - width, shape[3].get_length()]
                _tell_shape(port, told)
            else:
                shapes[name] = [1, width]
        model.reshape(shapes)
        return model


def to_static(
    model: ov.Model,
    capacity: int,
    hidden_layers: Sequence[int] = (),
    head_tokens: Sequence[int] | None = None,
) -> Static:
    """Take the state out of `model`, which is rewritten. Raises ModelError for a graph of another form.

    hidden_layers, head_tokens: as for `surgery.to_paged`.
    """
    rows = ops.parameter([-1], np.int64, name=LOGITS_ROWS)
    rows.output(0).set_names({LOGITS_ROWS})
    hidden = {layer: graph.layer_output(model, layer) for layer in hidden_layers}
    graph.trim(model, rows, head_tokens)
    outputs = []
    for layer, output in hidden.items():
        # A node of its own, since a name that is there already would be taken away from its port.
        states = ops.convert(output, np.float32).output(0)
        states.set_names({f"hidden.{layer}"})
        outputs.append(states)
    model.add_parameters([rows])
    model.add_outputs(outputs)
    model.validate_nodes_and_infer_types()
    stateful_to_stateless_transformation(model)
    masks, inputs = _explicit_masks(model, capacity)
    _scatter(model)
    used = {"input_ids", "position_ids", LOGITS_ROWS}
    kept = [
        node
        for node in model.get_parameters()
        if (name := node.output(0).any_name) in used or name.startswith(PAST)
    ]
    try:
        # A new model: what the old mask was worked out from is left behind.
        static = ov.Model(model.get_results(), [*kept, *inputs], "static")
        static.validate_nodes_and_infer_types()  # or its clones have other types
    except RuntimeError as error:
        raise ModelError(f"this architecture has no static form: {graph.first_line(error)}") from error
    return Static(static, masks)


def _scatter(model: ov.Model) -> None:
    """Write new rows to their positions in the cache where the exporter appends them to it."""
    positions = ops.reshape(
        _parameter(model, "position_ids"), ops.constant(np.array([-1], np.int64)), special_zero=False
    )
    found = 0
    for result in model.get_results():
        if not any(name.startswith(PRESENT) for name in result.input_value(0).get_names()):
            continue
        names, concat = result.input_value(0).get_names(), result.input_value(0).get_node()
        past = concat.input_value(0).get_node()
        if (concat.get_type_name(), past.get_type_name()) != ("Concat", "Parameter"):
            raise ModelError("the key/value cache was not found in the model's graph")
        # Rounded before attention as they will be in the cache, or a token would change when it is kept.
        kind = past.get_element_type()
        past.set_element_type(ov.Type.f16)
        past.constructor_validate_and_infer_types()
        new = ops.convert(concat.input_value(1), ov.Type.f16)
        axis = ops.constant(np.int64(2))
        cache = ops.convert(ops.scatter_update(past, positions, new, axis), kind)
        concat.output(0).set_names(set())
        for consumer in concat.output(0).get_target_inputs():
            consumer.replace_source_output(cache.output(0))
        new.output(0).set_names(names)
        result.input(0).replace_source_output(new.output(0))
        found += 1
    if not found:
        raise ModelError("the model has no key/value cache")


def _explicit_masks(model: ov.Model, capacity: int) -> tuple[list[NDArray[np.generic]], list[ov.Node]]:
    """Give every attention its mask as an input; what the masks were for a whole text, and the inputs.

    The model's own graph works them out once, so that sliding windows need no rules here.
    """
    attention = [node for node in model.get_ops() if node.get_type_name() == "ScaledDotProductAttention"]
    if not attention or any(node.get_input_size() < 4 for node in attention):
        raise ModelError("the attention masks were not found in the model's graph")
    kinds: list[NDArray[np.generic]] = []
    inputs: list[ov.Node] = []
    seen: dict[tuple[str, int], int] = {}
    for node in attention:
        source = node.input_value(3)
        while source.get_node().get_type_name() == "Slice":  # cuts off what a shorter cache lacks
            source = source.get_node().input_value(0)
        key = (source.get_node().get_friendly_name(), source.get_index())
        if key not in seen:
            mask = _evaluated(model, source, capacity)
            same = [i for i, known in enumerate(kinds) if np.array_equal(known, mask)]
            seen[key] = same[0] if same else len(kinds)
            if not same:
                kinds.append(mask)
                name = f"mask.{len(inputs)}"
                parameter = ops.parameter([1, 1, -1, capacity], mask.dtype, name=name)
                parameter.output(0).set_names({name})
                inputs.append(parameter)
        node.input(3).replace_source_output(inputs[seen[key]].output(0))
    return kinds, inputs


def _tell_shape(port: ov.Output, shape: list[int]) -> None:
    """Let the graph believe that this input has another shape.

    It works out lengths as past and new together, as if new rows were appended: the sum is the capacity.
    """
    told = ops.constant(np.array(shape, np.int64)).output(0)
    for consumer in port.get_target_inputs():
        asking = consumer.get_node()
        if asking.get_type_name() == "ShapeOf":
            for reader in asking.output(0).get_target_inputs():
                reader.replace_source_output(told)


def _evaluated(model: ov.Model, mask: ov.Output, capacity: int) -> NDArray[np.generic]:
    """[capacity, capacity] what the model's graph masks in a text of `capacity` tokens and no past."""
    part = ov.Model([mask], model.get_parameters(), "mask")
    ids = np.arange(capacity, dtype=np.int64)[None]
    values: dict[str, NDArray[np.generic]] = {}
    for port in part.inputs:
        name, shape = port.any_name, port.get_partial_shape()
        if name.startswith(PAST):
            size = [1, shape[1].get_length(), 0, shape[3].get_length()]
            values[name] = np.zeros(size, port.get_element_type().to_dtype())
        elif name == LOGITS_ROWS:
            values[name] = np.zeros(1, np.int64)
        else:
            values[name] = {"position_ids": ids, "attention_mask": np.ones_like(ids)}.get(name, ids * 0)
    compiled = core().compile_model(part, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found: NDArray[np.generic] = np.array(compiled(values)[0])
    if found.shape != (1, 1, capacity, capacity):
        raise ModelError(f"attention masks have the shape {found.shape}, which has no static form here")
    return found.reshape(capacity, capacity)


def _parameter(model: ov.Model, name: str) -> ov.Node:
    for node in model.get_parameters():
        if name in node.output(0).get_names():
            return node
    raise ModelError(f"the model has no input {name}")
