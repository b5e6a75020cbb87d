"""Mends the paged form of models with recurrent states: linear attention and short convolutions. Graph surgery only."""

from __future__ import annotations

import openvino as ov


def has_recurrent_state(model: ov.Model) -> bool:
    """Return whether a stateful model keeps anything but keys and values, which grow with the text."""
    return any(
        sum(dim.is_dynamic for dim in op.output(0).get_partial_shape()) < 2
        for op in model.get_ops()
        if op.get_type_name() == "ReadValue"
    )
