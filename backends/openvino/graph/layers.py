"""Decoder layers of a stateful IR: finding, dropping and gating them. Graph surgery only.

A decoder layer adds its attention's and its feed-forward part's output to the residual stream. Exporters
name the two additions after the layer; everything between them follows from the graph.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import openvino as ov
from openvino import opset15 as ops

from specport.errors import ModelError

_ADD = re.compile(r"layers\.(\d+)/aten::add/Add(_1)?$")
_STATE = re.compile(r"past_key_values\.(\d+)\.")


@dataclass(frozen=True)
class Layer:
    """The two additions of a layer, and which input of each is the residual stream (0 or 1)."""

    attention: ov.Node
    feed_forward: ov.Node
    attention_stream: int
    feed_forward_stream: int

    @property
    def entry(self) -> ov.Output:
        """The residual stream before the layer, [batch, tokens, width]."""
        return self.attention.input_value(self.attention_stream)

    @property
    def exit(self) -> ov.Output:
        return self.feed_forward.output(0)


def find(model: ov.Model) -> list[Layer]:
    """Every decoder layer, first to last. Raises ModelError where the graph has another form."""
    adds: dict[int, dict[bool, ov.Node]] = {}
    for node in model.get_ops():
        if node.get_type_name() == "Add" and (match := _ADD.search(node.get_friendly_name())):
            adds.setdefault(int(match[1]), {})[match[2] is not None] = node
    if not adds or any(len(pair) != 2 for pair in adds.values()):
        raise ModelError("the decoder layers were not found in the model's graph")
    layers: list[Layer] = []
    for _, pair in sorted(adds.items()):
        first, second = pair[False], pair[True]
        before = layers[-1].exit.get_node().get_friendly_name() if layers else None
        # The first layer's stream is the embedding: the side that does not come out of the layer itself.
        stream = _side(first, before) if before else 1 - _inner(first)
        layers.append(Layer(first, second, stream, _side(second, first.get_friendly_name())))
    return layers


def drop(model: ov.Model, dropped: Collection[int]) -> None:
    """Take layers out of a stateful model, with their part of the cache; the others are not renumbered.

    The first layer stays: exporters read the length of the context off its cache.
    """
    layers = find(model)
    wrong = [n for n in dropped if not 0 < n < len(layers)]
    if wrong:
        raise ModelError(f"layer {wrong[0]} cannot be dropped from a model of {len(layers)} layers")
    # From the last to the first, so that each entry is still what the graph says it is.
    for number in sorted(dropped, reverse=True):
        layer = layers[number]
        entry = layer.entry
        for consumer in layer.exit.get_target_inputs():
            consumer.replace_source_output(entry)
    for sink in model.get_sinks():
        if (match := _STATE.match(sink.get_variable_id())) and int(match[1]) in dropped:
            model.remove_sink(sink)
    for variable in model.get_variables():
        name = variable.get_info().variable_id
        if (match := _STATE.match(name)) and int(match[1]) in dropped:
            model.remove_variable(variable)
    model.validate_nodes_and_infer_types()


def gate(model: ov.Model) -> None:
    """Multiply what each layer adds to the stream by an input `gates`, [layers]; 0 is as if dropped."""
    layers = find(model)
    gates = ops.parameter([len(layers)], np.float32, name="gates")
    gates.output(0).set_names({"gates"})
    for number, layer in enumerate(layers):
        factor = ops.gather(gates, ops.constant(np.array([number])), ops.constant(np.int64(0)))
        for add, stream in (
            (layer.attention, layer.attention_stream),
            (layer.feed_forward, layer.feed_forward_stream),
        ):
            branch = add.input(1 - stream)
            branch.replace_source_output(ops.multiply(branch.get_source_output(), factor).output(0))
    model.add_parameters([gates])
    model.validate_nodes_and_infer_types()


def _side(add: ov.Node, source: str) -> int:
    """The input of `add` that is fed by the node named `source`."""
    for side in (0, 1):
        if add.input_value(side).get_node().get_friendly_name() == source:
            return side
    raise ModelError(f"the residual stream was not found at {add.get_friendly_name()}")


def _inner(add: ov.Node) -> int:
    """The input of the first layer's addition that comes out of its attention."""
    for side in (0, 1):
        if "layers.0" in add.input_value(side).get_node().get_friendly_name():
            return side
    raise ModelError(f"the residual stream was not found at {add.get_friendly_name()}")
