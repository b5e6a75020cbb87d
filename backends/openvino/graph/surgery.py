"""Turns a stateful OpenVINO IR into the paged form that the backend runs. Graph surgery only.

Needs no torch and no copy of the model's source: any IR that optimum-intel or a user exported as
stateful text generation will do. Knows nothing of caches, sequences or devices.

The paged form takes flat tokens of many sequences and explicit caches (see `paged/model.py`). Two
things are added to it here: the rows whose logits are wanted are gathered before the head, so that a
prompt does not pay for its whole vocabulary matrix, and hidden states are extra outputs on request, whose
rows are chosen by an input of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import openvino as ov
from numpy.typing import ArrayLike, NDArray
from openvino import opset15 as ops
from openvino._offline_transformations import paged_attention_transformation
from specport.backends.openvino.graph import recurrent
from specport.quantize.convert.openvino_core import core

from specport.core.ports import HEAD_INPUT as HIDDEN_HEAD_INPUT
from specport.errors import ModelError

LOGITS_INDICES, HIDDEN_INDICES, HEAD_INPUT = "logits_indices", "hidden_indices", "head_input"
ATTENTION_ROWS, KEPT_ROWS = "attention_rows", "kept_rows"
TOKEN_TYPES = "token_type_ids"
_TYPES_OF_ATTENTION = 25  # the input of PagedAttention that takes them (2026.4)


def read_model(folder: Path) -> ov.Model:
    """Return the IR in `folder`. Raises ModelError when it is damaged or is not stateful text generation."""
    path = folder / "openvino_model.xml"
    try:
        model = core().read_model(path)
    except RuntimeError as error:
        raise ModelError(f"{path} cannot be read as OpenVINO IR: {first_line(error)}") from error
    names = {name for port in model.inputs for name in port.names}
    if "input_ids" not in names or not model.get_sinks():
        raise ModelError(
            f"{path} is not a stateful text-generation model",
            "export it with: optimum-cli export openvino --task text-generation-with-past",
        )
    return model


def to_paged(
    model: ov.Model,
    hidden_layers: Sequence[int] = (),
    head_tokens: Sequence[int] | None = None,
    *,
    head_input: bool = False,
    looks_ahead: bool = False,
    attention_rows: bool = False,
) -> ov.Model:
    """Rewrite `model` in place for PagedAttention and return it.

    hidden_layers: decoder layers whose output becomes an output `hidden.N`, [rows, 1, width], of the tokens
                   that the input HIDDEN_INDICES names.
    head_tokens:   token ids that the head keeps, in this order; None keeps all. Column j of the
                   logits is then token head_tokens[j] (FR-Spec, arXiv 2502.14856).
    head_input:    what the head reads becomes the output HEAD_INPUT, [rows, 1, width].
    looks_ahead:   the input TOKEN_TYPES is 1 at tokens that see those behind them as well, as far as the mask
                   of their segment allows; empty where no token does.
    attention_rows: attention takes the tokens that the input ATTENTION_ROWS [A] names, in its order, and the
                   other layers take on those of the A that KEPT_ROWS [N] names. So a token may stand twice
                   in attention alone, where that costs next to nothing.

    Logits are those of the tokens that the input LOGITS_INDICES names.
    """
    hidden = {layer: layer_output(model, layer) for layer in hidden_layers}
    head, _ = _head(model)
    if head_tokens is not None:
        _cut_head(head, np.asarray(head_tokens, dtype=np.int64))
    indices, wanted = _indices(LOGITS_INDICES), _indices(HIDDEN_INDICES)
    model.add_parameters([indices, wanted] if hidden else [indices])
    hybrid = recurrent.has_recurrent_state(model)
    try:
        paged_attention_transformation(model, allow_qq_bias=True)
    except RuntimeError as error:
        raise ModelError(f"this architecture has no paged form: {first_line(error)}") from error
    if hybrid:
        recurrent.mend(model)
    if looks_ahead:
        _add_token_types(model)
    if attention_rows:
        _add_attention_rows(model)
    # After the transformation the tokens of all sequences lie along axis 0.
    head.input(0).replace_source_output(gather(head.input_value(0), indices))
    if head_input:
        _add_output(model, head.input_value(0), HEAD_INPUT)
    for layer, output in hidden.items():
        _add_output(model, gather(output, wanted), f"hidden.{layer}")
    model.validate_nodes_and_infer_types()
    return model


def _add_token_types(model: ov.Model) -> None:
    """Let every attention know which tokens look ahead: what Gemma 3 needs for the tokens of an image."""
    types = _indices(TOKEN_TYPES)
    for node in _attentions(model):
        node.input(_TYPES_OF_ATTENTION).replace_source_output(types.output(0))
    model.add_parameters([types])


def _add_attention_rows(model: ov.Model) -> None:
    """Choose the rows of queries, keys and values before each attention, and of its result behind it."""
    rows, kept = _indices(ATTENTION_ROWS), _indices(KEPT_ROWS)
    for node in _attentions(model):
        readers = list(node.output(0).get_target_inputs())
        for i in range(3):
            node.input(i).replace_source_output(gather(node.input_value(i), rows))
        result = gather(node.output(0), kept)
        for reader in readers:
            reader.replace_source_output(result)
    model.add_parameters([rows, kept])


def _attentions(model: ov.Model) -> list[ov.Node]:
    return [node for node in model.get_ops() if node.get_type_name() == "PagedAttentionExtension"]


def _indices(name: str) -> ov.Node:
    """Return an input of numbers, [n] int32."""
    indices = ops.parameter([-1], np.int32, name=name)
    indices.output(0).set_names({name})
    return indices


def trim(model: ov.Model, rows: ov.Node, head_tokens: Sequence[int] | None) -> None:
    """Let a stateful model give the logits of these tokens (axis 1) only, and of these ids (None = all)."""
    head, _ = _head(model)
    if head_tokens is not None:
        _cut_head(head, np.asarray(head_tokens, dtype=np.int64))
    head.input(0).replace_source_output(gather(head.input_value(0), rows, axis=1))


def head_rows(model: ov.Model) -> ov.Model | None:
    """Return a graph from ids [n] to rows [n, width] of the head of a model that is not cut yet, float32.

    Return None where something comes between the products with these rows and the logits, such as a soft cap.
    """
    head, behind = _head(model)
    if behind - {"Convert"}:
        return None
    ids = ops.parameter([-1], np.int64, name="ids")
    rows = _looked_up(head.input_value(1), ids.output(0))
    return ov.Model([ops.convert(rows, np.float32)], [ids], "head_rows")


def embedded(model: ov.Model, ids: ov.Output) -> ov.Output:
    """Return the rows [n, width] of a stateful model's embedding table at `ids` [n], in another graph.

    Raises ModelError where the table is not found.
    """
    for node in model.get_ops():
        if node.get_type_name() == "Gather" and _is_input_ids(node.input_value(1).get_node()):
            return _looked_up(node.input_value(0), ids)
    raise ModelError("the embeddings were not found in the model's graph")


def _is_input_ids(node: ov.Node) -> bool:
    while node.get_type_name() in ("Convert", "Unsqueeze"):  # the paged form has the latter
        node = node.input_value(0).get_node()
    return node.get_type_name() == "Parameter" and "input_ids" in node.output(0).get_names()


def head_weight(model: ov.Model, head_tokens: Sequence[int] | None) -> ov.Output:
    """Return the weight [rows, width] of a model's head at these ids (None = all), for another graph."""
    weight = _head(model)[0].input_value(1)
    vocab = weight.get_partial_shape()[0].get_length()
    keep = np.arange(vocab) if head_tokens is None else _checked_rows(head_tokens, vocab)
    return _pick_rows(weight, vocab, lambda constant: _slice_constant(constant, keep).output(0))


def replace_head(model: ov.Model, weight: ov.Output) -> None:
    """Give a model another head. weight: [rows, width]; from another model's graph, as of `head_weight`."""
    _head(model)[0].input(1).replace_source_output(weight)


def replace_embeddings(model: ov.Model, embeddings: ov.Output) -> None:
    """Give a paged model other embeddings of its tokens, [tokens, 1, width].

    Raises ModelError where the present ones are not found.
    """
    for node in model.get_ops():
        if node.get_type_name() == "Gather" and _is_input_ids(node.input_value(1).get_node()):
            for reader in node.output(0).get_target_inputs():
                reader.replace_source_output(embeddings)
            return
    raise ModelError("the embeddings were not found in the model's graph")


def num_rows(model: ov.Model) -> int:
    """Return the number of rows of a model's head."""
    return int(_head(model)[0].input_value(1).get_partial_shape()[0].get_length())


def _looked_up(table: ov.Output, ids: ov.Output) -> ov.Output:
    """Return rows of a compressed table, decompressed after they were looked up."""
    vocab = table.get_partial_shape()[0].get_length()
    return _pick_rows(table, vocab, lambda constant: gather(constant.output(0), ids))


def _add_output(model: ov.Model, source: ov.Output, name: str) -> None:
    # A node of its own, since a name that is there already would be taken away from its port.
    output = ops.convert(source, np.float32).output(0)
    output.set_names({name})
    model.add_outputs([output])


def gather(source: ov.Output, indices: ov.Node | ov.Output, axis: int = 0) -> ov.Output:
    return ops.gather(source, indices, ops.constant(np.int64(axis))).output(0)


def _head(model: ov.Model) -> tuple[ov.Node, set[str]]:
    """Return the MatMul that makes the logits, and the kinds of nodes behind it: soft caps and converts."""
    behind: set[str] = set()
    node = next(port for port in model.outputs if "logits" in port.names).node.input_value(0).node
    while node.get_type_name() != "MatMul":
        # Final_logit_softcapping and output converts are unary chains on input 0.
        if not node.get_input_size():
            raise ModelError("the model's language-model head was not found")
        behind.add(node.get_type_name())
        node = node.input_value(0).node
    return node, behind


def layer_output(model: ov.Model, layer: int) -> ov.Output:
    """Return what a decoder layer adds to the residual stream; for HEAD_INPUT what the head reads."""
    if layer == HIDDEN_HEAD_INPUT:
        return _head(model)[0].input_value(0)
    name = f"layers.{layer}/aten::add/Add_1"
    for node in model.get_ops():
        if node.get_friendly_name().endswith(name):
            return node.output(0)
    raise ModelError(f"hidden states of layer {layer} were not found in the model's graph")


def _cut_head(head: ov.Node, keep: NDArray[np.int64]) -> None:
    """Slice the head's weight, zero point and scale to the rows `keep`. Embeddings stay whole.

    The head's weight may be shared with the embedding (tied), so its constants are copied.
    """
    vocab = head.input_value(1).get_partial_shape()[0].get_length()
    keep = _checked_rows(keep, vocab)
    sliced = _pick_rows(
        head.input_value(1), vocab, lambda constant: _slice_constant(constant, keep).output(0)
    )
    head.input(1).replace_source_output(sliced)


def _checked_rows(head_tokens: ArrayLike, vocab: int) -> NDArray[np.int64]:
    """Return ids of head rows as an array. Raises ModelError where they are no distinct rows of the head."""
    keep = np.asarray(head_tokens, dtype=np.int64)
    if keep.size == 0 or keep.min() < 0 or keep.max() >= vocab or np.unique(keep).size != keep.size:
        raise ModelError(f"head tokens must be distinct ids from 0 to {vocab - 1}")
    return keep


def _pick_rows(source: ov.Output, vocab: int, pick: Callable[[ov.Node], ov.Output]) -> ov.Output:
    """Rebuild the weight's decompression chain (Convert, Subtract, Multiply, Reshape) on some of its rows.

    pick: rows of a constant [vocab, ...].
    """
    node = source.node
    kind = node.get_type_name()
    if kind == "Constant":
        if not node.shape or node.shape[0] != vocab:
            return source  # a scalar or broadcast constant
        return pick(node)
    if not can_rebuild(node):
        raise ModelError(f"cannot cut a head whose weight comes from {kind}")
    return rebuilt(node, [_pick_rows(port, vocab, pick) for port in node.input_values()])


def can_rebuild(node: ov.Node) -> bool:
    return node.get_type_name() in _REBUILD


def rebuilt(node: ov.Node, inputs: list[ov.Output]) -> ov.Output:
    """Return a step of a weight's decompression on other inputs, which may have another number of rows."""
    kind = node.get_type_name()
    if kind == "Reshape":  # grouped weights: [rows, groups, size] -> [rows, width]
        width = node.output(0).get_partial_shape()[-1].get_length()
        inputs = [inputs[0], ops.constant(np.array([-1, width], dtype=np.int64)).output(0)]
    found = _REBUILD[kind](node, inputs)
    for key, value in node.get_rt_info().items():
        found.set_rt_info(value, key)  # marks decompression, so that it is not folded away
    return found.output(0)


_REBUILD: dict[str, Callable[[ov.Node, list[ov.Output]], ov.Node]] = {
    "Convert": lambda node, inputs: ops.convert(inputs[0], node.get_element_type()),
    "Subtract": lambda _, inputs: ops.subtract(*inputs),
    "Multiply": lambda _, inputs: ops.multiply(*inputs),
    "Reshape": lambda _, inputs: ops.reshape(*inputs, special_zero=False),
}


def _slice_constant(node: ov.Node, keep: NDArray[np.int64]) -> ov.Node:
    """Return rows `keep` of a constant [vocab, ...]; 4-bit types are sliced as packed bytes."""
    shape = list(node.shape)
    source = np.asarray(node.data).reshape(shape[0], -1)
    return constant_like(node, keep.size, source[keep])


def constant_like(node: ov.Node, num_rows: int, data: NDArray[np.generic]) -> ov.Node:
    """Return a constant of the type of `node` with so many rows. data: its memory, 4-bit types packed."""
    tensor = ov.Tensor(node.get_element_type(), ov.Shape([num_rows, *list(node.shape)[1:]]))
    # Written into the tensor's own memory: one made from an array would not keep the array alive.
    tensor.data.reshape(-1)[:] = data.ravel()
    return ops.constant(tensor)


def first_line(error: Exception) -> str:
    """Return the telling line of the runtime's long messages: the last one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
