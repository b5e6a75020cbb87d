"""Cuts a paged model between layers: runs of layers, one after the other, and a head. Graph surgery only.

    first run   tokens -> the residual stream behind its last layer
    next run    that stream -> the stream behind its last layer
    head        a stream -> logits

Every weight is there once. With an early exit the head, with the final norm, serves the exit and the end. A
slim verifier leaves out some of the runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import openvino as ov
from openvino import opset15 as ops
from specport.backends.openvino.graph import layers, surgery

from specport.errors import ModelError

STREAM_IN, STREAM_OUT = "stream_in", "stream_out"  # between the parts, [tokens, 1, width]
_CUT, _END = "specport.cut", "specport.end"


@dataclass(frozen=True)
class Parts:
    """The graphs; each of the runs has the cache of its own layers."""

    runs: tuple[ov.Model, ...]
    head: ov.Model


def runs_of(num_layers: int, skipped: Sequence[int]) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Return where a model is cut so that each run of layers is kept or skipped, and which runs are kept.

    Raises ModelError for layers that cannot be skipped: the first and the last stay.
    """
    if wrong := [layer for layer in skipped if not 0 < layer < num_layers - 1]:
        raise ModelError(
            f"layer {wrong[0]} cannot be skipped: the model has {num_layers}, of which the first and the "
            "last stay"
        )
    kept = [layer not in skipped for layer in range(num_layers)]
    cuts = tuple(layer for layer in range(1, num_layers) if kept[layer] != kept[layer - 1])
    return cuts, tuple(kept[layer] for layer in (0, *cuts))


def cut(model: ov.Model, cuts: Sequence[int], element: ov.Type) -> Parts:
    """The parts of a stateful model in the paged form, which is rewritten on the way.

    cuts:    the first layer of each run but the first, ascending.
    element: type of the stream between them. It must be the one that the runtime computes in: rounded to
             any other, or not at all, the stream is no more what it is inside the whole model. With it the
             logits are those of the whole model, to the bit (CPU, 2026.4: f32 and bf16).
    Raises ModelError for a layer that the model does not have.
    """
    found = layers.find(model)
    for layer in cuts:
        if not 0 < layer < len(found):
            raise ModelError(
                f"the model has {len(found)} layers: it cannot exit after {layer}",
                f"choose one from 1 to {len(found) - 1}",
            )
    # The transformation keeps these additions, and copies keep their names.
    names = [f"{_CUT}.{layer}" for layer in cuts]
    for layer, name in zip(cuts, names, strict=True):
        found[layer].entry.get_node().set_friendly_name(name)
    found[-1].exit.get_node().set_friendly_name(_END)
    paged = surgery.to_paged(model)
    runs = [paged, *(paged.clone() for _ in cuts)]
    head = paged.clone()
    for run, name in zip(runs[1:], names, strict=True):
        _feed(run, name, element)
    _feed(head, _END, element)
    logits = next(port for port in head.outputs if "logits" in port.names).node
    ends = [*names, _END]
    return Parts(
        tuple(_ending(_stream(run, name, element)) for run, name in zip(runs, ends, strict=True)),
        _ending(logits),
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
