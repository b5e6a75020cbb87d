"""Makes one product of those that read the same: a layer's queries, keys and values. Graph surgery only.

On processors each small product costs some ten microseconds beside its arithmetic, which is a good part of a
step of a small model. The runtime's GPU plugin merges such products by itself, its CPU plugin does not
(2026.4). Each output is the same sum as before. But gate and up, where they are merged too, are no longer
fused with what lies between them, and round once more.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset15 as ops
from specport.backends.openvino.graph.surgery import can_rebuild, constant_like, rebuilt

TRIPLES, PAIRS = 3, 2  # queries, keys and values, which leaves all bits as they were; gate and up as well


def merge_products(model: ov.Model, fewest: int) -> int:
    """Merge groups of so many products at least, in place; returns how many groups.

    Products whose weights are of different forms are left alone.
    """
    readers: dict[tuple[str, int], list[ov.Node]] = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() == "MatMul" and node.get_attributes()["transpose_b"] and _is_matrix(node):
            source = node.input_value(0)
            key = (source.get_node().get_friendly_name(), source.get_index())
            readers.setdefault(key, []).append(node)
    groups = [nodes for nodes in readers.values() if len(nodes) >= fewest]
    count = sum(_merged(nodes) for nodes in groups)
    model.validate_nodes_and_infer_types()
    return count


def _is_matrix(product: ov.Node) -> bool:
    """Whether the weights are one matrix; those of a mixture of experts are one for each."""
    return len(product.input_value(1).get_partial_shape()) == 2


def _merged(products: Sequence[ov.Node]) -> bool:
    weights = _joined([node.input_value(1) for node in products])
    if weights is None:
        return False
    ends = [node.output(0) for node in products]
    widths = [end.get_partial_shape()[-1].get_length() for end in ends]
    found = ops.matmul(products[0].input_value(0), weights, transpose_a=False, transpose_b=True)
    biases = [bias for end in ends if (bias := _bias(end)) is not None]
    if len(biases) == len(ends):
        ends = [add.output(0) for add, _ in biases]
        joined = np.concatenate([values.ravel() for _, values in biases])
        found = ops.add(found, ops.constant(joined.reshape(1, 1, -1)))
    axis, lengths = ops.constant(np.int64(-1)), ops.constant(np.array(widths, dtype=np.int64))
    for end, part in zip(ends, ops.variadic_split(found, axis, lengths).outputs(), strict=True):
        for reader in end.get_target_inputs():
            reader.replace_source_output(part)
    return True


def _joined(sources: Sequence[ov.Output]) -> ov.Output | None:
    """Weights [out, ...] below each other, with their decompression; None where their forms differ."""
    nodes = [source.get_node() for source in sources]
    first, kinds = nodes[0], {node.get_type_name() for node in nodes}
    if len(kinds) > 1 or len({node.get_element_type() for node in nodes}) > 1:
        return None
    if kinds == {"Constant"}:
        return _joined_constants(nodes)
    if not can_rebuild(first):
        return None
    inputs = []
    for number in range(first.get_input_size()):
        found = _joined([node.input_value(number) for node in nodes])
        if found is None:
            return None
        inputs.append(found)
    return rebuilt(first, inputs)


def _joined_constants(nodes: Sequence[ov.Node]) -> ov.Output | None:
    first, shapes = nodes[0], [tuple(node.shape) for node in nodes]
    if all(np.prod(shape) == 1 for shape in shapes):  # one zero point for all
        same = all(np.array_equal(node.data, first.data) for node in nodes)
        return first.output(0) if same else None
    if len({shape[1:] for shape in shapes}) > 1:
        return None
    # 4-bit types are joined as the bytes they are packed in, which each must fill.
    bits = first.get_element_type().bitwidth
    if any(bits * np.prod(shape) % 8 for shape in shapes):
        return None
    data = np.concatenate([np.asarray(node.data).ravel() for node in nodes])
    return constant_like(first, sum(shape[0] for shape in shapes), data).output(0)


def _bias(product: ov.Output) -> tuple[ov.Node, NDArray[np.float32]] | None:
    """The addition of a constant that is all that reads the product, and the constant."""
    readers = [*product.get_target_inputs()]
    if len(readers) != 1 or (add := readers[0].get_node()).get_type_name() != "Add":
        return None
    node = add.input_value(1 - readers[0].get_index()).get_node()
    if node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    if (
        node.get_type_name() != "Constant"
        or np.prod(node.shape) != product.get_partial_shape()[-1].get_length()
    ):
        return None
    return add, np.asarray(node.data).astype(np.float32)
