"""Cuts a paged model in three where it may exit early: front, back and head. Graph surgery only.

    front   tokens -> the residual stream behind the first `exit_layer` layers
    back    that stream -> the stream behind the last layer
    head    either stream -> logits

The head, with the final norm, serves the exit and the end, so that every weight is there once.
"""

from __future__ import annotations

from dataclasses import dataclass

import openvino as ov
from openvino import opset15 as ops
from specport.backends.openvino.graph import layers, surgery

from specport.errors import ModelError

STREAM_IN, STREAM_OUT = "stream_in", "stream_out"  # between the parts, [tokens, 1, width]
_EXIT, _END = "specport.exit", "specport.end"


@dataclass(frozen=True)
class Parts:
    """The three graphs; front and back have the cache of their own layers."""

    front: ov.Model
    back: ov.Model
    head: ov.Model


def split(model: ov.Model, exit_layer: int, element: ov.Type) -> Parts:
    """The parts of a stateful model in the paged form, which is rewritten on the way.

    element: type of the stream between them. It must be the one that the runtime computes in: rounded to
             any other, or not at all, the stream is no more what it is inside the whole model. With it the
             logits are those of the whole model, to the bit (CPU, 2026.4: f32 and bf16).
    Raises ModelError for a layer that the model does not have.
    """
    found = layers.find(model)
    if not 0 < exit_layer < len(found):
        raise ModelError(
            f"the model has {len(found)} layers: it cannot exit after {exit_layer}",
            f"choose one from 1 to {len(found) - 1}",
        )
    # The transformation keeps these two additions, and copies keep their names.
    found[exit_layer].entry.get_node().set_friendly_name(_EXIT)
    found[-1].exit.get_node().set_friendly_name(_END)
    paged = surgery.to_paged(model)
    front, back, head = paged, paged.clone(), paged.clone()
    _feed(back, _EXIT, element)
    _feed(head, _END, element)
    logits = next(port for port in head.outputs if "logits" in port.names).node
    return Parts(
        _ending(_stream(front, _EXIT, element)), _ending(_stream(back, _END, element)), _ending(logits)
    )


def _feed(model: ov.Model, name: str, element: ov.Type) -> None:
    """Let all that reads the stream at this node read it from an input instead."""
    output = _node(model, name).output(0)
    parameter = ops.parameter(output.get_partial_shape(), element, name=STREAM_IN)
    parameter.output(0).set_names({STREAM_IN})
    stream = ops.convert(parameter, output.get_element_type()).output(0)
    for reader in output.get_target_inputs():
        reader.replace_source_output(stream)


def _stream(model: ov.Model, name: str, element: ov.Type) -> ov.Node:
    """The stream at this node as a result."""
    output = ops.convert(_node(model, name).output(0), element).output(0)
    output.set_names({STREAM_OUT})
    return ops.result(output)


def _node(model: ov.Model, name: str) -> ov.Node:
    for node in model.get_ops():
        if node.get_friendly_name() == name:
            return node
    raise ModelError("the residual stream was lost in the model's paged form")


def _ending(result: ov.Node) -> ov.Model:
    """The model that computes this result, and nothing else."""
    parameters, seen, left = [], {result.get_friendly_name()}, [result]
    while left:
        node = left.pop()
        if node.get_type_name() == "Parameter":
            parameters.append(node)
        for source in (port.get_node() for port in node.input_values()):
            if source.get_friendly_name() not in seen:  # the same node comes in a new wrapper each time
                seen.add(source.get_friendly_name())
                left.append(source)
    return ov.Model([result], parameters)
