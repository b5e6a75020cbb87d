"""Mends the paged form of models with recurrent states. Graph surgery only.

OpenVINO turns linear attention and short convolutions into paged operators (PagedGatedDeltaNet,
PagedCausalConv1D), whose states are in tables of the caller (`paged/states.py`).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import openvino as ov
from openvino import opset15 as ops

from specport.errors import ModelError

STATE_BEGINS = "la.subsequence_begins"
# The input of each recurrent operator that takes where sequences begin (2026.4).
_BEGINS = {"PagedGatedDeltaNet": 6, "PagedCausalConv1D": 4}


def has_recurrent_state(model: ov.Model) -> bool:
    """Return whether a stateful model keeps anything but keys and values, which grow with the text."""
    return any(
        sum(dim.is_dynamic for dim in node.output(0).get_partial_shape()) < 2
        for node in model.get_ops()
        if node.get_type_name() == "ReadValue"
    )


def mend(model: ov.Model) -> None:
    """Mend the paged form of a model with recurrent states, in place.

    Its recurrent layers take where sequences begin from the input STATE_BEGINS [sequences + 1]: attention may
    have more rows than they.

    Raises ModelError where a state was left that has no paged form.
    """
    if model.get_sinks():
        raise ModelError(
            "this architecture has no paged form: OpenVINO does not know all of its recurrent layers"
        )
    _feed_positions(model)
    begins = ops.parameter([-1], np.int32, name=STATE_BEGINS)
    begins.output(0).set_names({STATE_BEGINS})
    for node in model.get_ops():
        if place := _BEGINS.get(node.get_type_name()):
            node.input(place).replace_source_output(begins.output(0))
    model.add_parameters([begins])


def _feed_positions(model: ov.Model) -> None:
    """Let rotary embeddings take each token's position from the input `position_ids`.

    Exports of these models (optimum-intel 2.2) count positions from the length of the cache. In the paged
    form each token is a sequence of length 1, so that all tokens of a step would have one position, that of
    the longest sequence (2026.4).
    """
    positions = next(port for port in model.inputs if "position_ids" in port.names)
    for turned in [node for node in model.get_ops() if node.get_type_name() in ("Cos", "Sin")]:
        if any(node == positions.get_node() for node in _above(turned)):
            continue
        product = next((node for node in _above(turned) if _counted(node)), None)
        if product is None:
            raise ModelError("this architecture has no paged form: its tokens' positions were not found")
        for port in product.inputs():
            if _is_counted(port.get_source_output()):
                port.replace_source_output(_own_positions(positions, port))


def _own_positions(positions: ov.Output, port: ov.Input) -> ov.Output:
    """Return positions [tokens] in the form that `port` takes: [..., tokens, 1, 1].

    Before the last three axes may be one of fixed length: Qwen3.5 has positions in time, height and width,
    which are the same in a text.
    """
    *axes, _, _, _ = port.get_partial_shape()
    shape = ops.constant(np.array([*(1 for _ in axes), -1, 1, 1], np.int64))
    repeats = ops.constant(np.array([*(axis.get_length() for axis in axes), 1, 1, 1], np.int64))
    own = ops.tile(ops.reshape(positions, shape, special_zero=False), repeats)
    return ops.convert(own, port.get_element_type()).output(0)


def _counted(node: ov.Node) -> bool:
    """Return whether a node multiplies counted positions by frequencies."""
    if node.get_type_name() not in ("MatMul", "Multiply") or not node.get_element_type().is_real():
        return False
    return sum(_is_counted(port) for port in node.input_values()) == 1


def _is_counted(port: ov.Output) -> bool:
    return any(node.get_type_name() == "Range" for node in _above(port.get_node()))


def _above(node: ov.Node) -> Iterator[ov.Node]:
    """Yield a node and those that its values come from, nearest first; shapes are no values."""
    seen, queue = {node.get_friendly_name()}, [node]
    for found in queue:
        yield found
        if found.get_type_name() == "ShapeOf":
            continue
        for port in found.input_values():
            source = port.get_node()
            if source.get_friendly_name() not in seen:
                seen.add(source.get_friendly_name())
                queue.append(source)
