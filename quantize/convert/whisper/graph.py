"""Build OpenVINO's graphs of a Whisper model from its weights: encoder, cross-attention's part, decoder.

The graphs are written node by node: no tracing, and no torch. Weights have transformers' names. Shapes, with
heads H of width d, frames F, and N tokens:

    encoder   features [1, mels, 2 F] -> states [1, F, width]
    cross     states [1, F, width] -> cross_key.L, cross_value.L [1, H, F, d] for each layer of the decoder
    decoder   a stateful text-generation model with `cross_key.L`, `cross_value.L` [W, H, F, d] of W windows;
              cross_rows [W, T] says which of the N tokens attend to each window, cross_back [N] where in
              these W * T rows each token's result is. Both count tokens as the graph's layers see them.
              query.L [N, width]: what attends to the windows, for the weights of alignment heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset6
from openvino import opset15 as ops

from specport.models.kinds.whisper import WhisperShape

Weights = Mapping[str, NDArray[Any]]
_EPSILON = 1e-5
_MIN = np.float32(-65504.0)


@dataclass(frozen=True)
class _Part:
    """Build pieces of a graph from the weights below a name."""

    weights: Weights
    name: str

    def sub(self, name: str) -> _Part:
        return _Part(self.weights, f"{self.name}.{name}")

    def get(self, *names: str) -> NDArray[np.float32]:
        """Return these weights, one below the other, in float32."""
        found = [np.asarray(self.weights[f"{self.name}.{name}"], np.float32) for name in names]
        return found[0] if len(found) == 1 else np.concatenate(found)

    def constant(self, name: str) -> ov.Node:
        return ops.constant(self.get(name), name=f"{self.name}.{name}")

    def linear(self, x: Any, *names: str) -> ov.Node:
        """Return the product with one or more linear layers, whose results lie side by side."""
        weight = ops.constant(self.get(*(f"{name}.weight" for name in names)), name=f"{self.name}.{names[0]}")
        out = ops.matmul(x, weight, False, True)
        biases = [self.weights.get(f"{self.name}.{name}.bias") for name in names]
        if all(bias is None for bias in biases):
            return out
        sizes = [self.weights[f"{self.name}.{name}.weight"].shape[0] for name in names]
        filled = [np.zeros(n) if b is None else b for n, b in zip(sizes, biases, strict=True)]
        return ops.add(out, ops.constant(np.concatenate(filled).astype(np.float32)))

    def norm(self, x: Any, name: str) -> ov.Node:
        flat = ops.mvn(x, ops.constant(np.array([-1])), True, _EPSILON, "inside_sqrt")
        scaled = ops.multiply(flat, self.constant(f"{name}.weight"))
        return ops.add(scaled, self.constant(f"{name}.bias"))

    def convolution(self, x: Any, name: str, stride: int) -> ov.Node:
        out = ops.convolution(x, self.constant(f"{name}.weight"), [stride], [1], [1], [1])
        return ops.gelu(ops.add(out, ops.constant(self.get(f"{name}.bias")[None, :, None])), "erf")

    def inner(self, x: Any) -> ov.Node:
        """Return the result of a layer's two linear layers, added to `x`."""
        wide = ops.gelu(self.linear(self.norm(x, "final_layer_norm"), "fc1"), "erf")
        return ops.add(x, self.linear(wide, "fc2"))


def encoder(weights: Weights, shape: WhisperShape) -> ov.Model:
    """Return the encoder's graph."""
    part = _Part(weights, "model.encoder")
    features = _input("features", [1, shape.mel_bins, 2 * shape.frames], np.float32)
    x = part.convolution(part.convolution(features, "conv1", 1), "conv2", 2)
    x = ops.add(ops.transpose(x, _ints(0, 2, 1)), part.constant("embed_positions.weight"))
    for i in range(shape.encoder_layers):
        layer = part.sub(f"layers.{i}")
        own = layer.sub("self_attn")
        q, k, v = _three(own, layer.norm(x, "self_attn_layer_norm"), shape.encoder_heads)
        x = ops.add(x, own.linear(_joined(_attention(q, k, v)), "out_proj"))
        x = layer.inner(x)
    return _model([_output(part.norm(x, "layer_norm"), "states")], [features], "whisper_encoder")


def cross(weights: Weights, shape: WhisperShape) -> ov.Model:
    """Return the graph of the keys and values that the decoder's layers attend to."""
    states = _input("states", [1, shape.frames, shape.width], np.float32)
    outputs = []
    for i in range(shape.decoder_layers):
        part = _Part(weights, f"model.decoder.layers.{i}.encoder_attn")
        both = ops.split(part.linear(states, "k_proj", "v_proj"), ops.constant(2), 2)
        for j, name in enumerate(("key", "value")):
            outputs.append(_output(_heads(both.output(j), shape.decoder_heads), f"cross_{name}.{i}"))
    return _model(outputs, [states], "whisper_cross")


def decoder(weights: Weights, shape: WhisperShape) -> ov.Model:
    """Return the decoder's graph, with its self-attention's keys and values as states."""
    part = _Part(weights, "model.decoder")
    ids = _input("input_ids", [-1, -1], np.int64)
    positions = _input("position_ids", [-1, -1], np.int64)
    beams = _input("beam_idx", [-1], np.int32)
    rows, back = _input("cross_rows", [-1, -1], np.int32), _input("cross_back", [-1], np.int32)
    inputs, sinks, queries = [ids, positions, beams, rows, back], [], []
    table = part.constant("embed_tokens.weight")
    x = ops.add(
        ops.gather(table, ids, ops.constant(0)),
        ops.gather(part.constant("embed_positions.weight"), positions, ops.constant(0)),
    )
    batch = ops.gather(ops.shape_of(ids), _ints(0), ops.constant(0))
    mask: ov.Node | None = None
    for i in range(shape.decoder_layers):
        layer = part.sub(f"layers.{i}")
        own, other = layer.sub("self_attn"), layer.sub("encoder_attn")
        q, k, v = _three(own, layer.norm(x, "self_attn_layer_norm"), shape.decoder_heads)
        cached = []
        for new, name in ((k, "key"), (v, "value")):
            joined, sink = _cached(new, batch, beams, f"past.{i}.{name}", shape)
            cached.append(joined)
            sinks.append(sink)
        mask = mask or _causal(positions, cached[0])
        x = ops.add(x, own.linear(_joined(_attention(q, cached[0], cached[1], mask)), "out_proj"))
        flat = ops.reshape(x, _ints(-1, shape.width), False)
        query = other.linear(layer.norm(flat, "encoder_attn_layer_norm"), "q_proj")
        queries.append(_output(query, f"query.{i}"))
        size = [-1, shape.decoder_heads, shape.frames, shape.head_width]
        windows = [_input(f"cross_{name}.{i}", size, np.float32) for name in ("key", "value")]
        inputs += windows
        spread = _heads(ops.gather(query, rows, ops.constant(0)), shape.decoder_heads)
        seen = ops.reshape(_joined(_attention(spread, windows[0], windows[1])), _ints(-1, shape.width), False)
        seen = other.linear(ops.gather(seen, back, ops.constant(0)), "out_proj")
        x = ops.add(x, ops.reshape(seen, ops.shape_of(x), False))
        x = layer.inner(x)
    # The table again, not the same node: a compressed head and a compressed embedding have other layouts.
    logits = ops.matmul(part.norm(x, "layer_norm"), part.constant("embed_tokens.weight"), False, True)
    model = ov.Model([_output(logits, "logits"), *queries], sinks, inputs, "whisper_decoder")
    model.validate_nodes_and_infer_types()
    return model


def _three(part: _Part, x: Any, heads: int) -> list[ov.Node]:
    """Return queries, keys and values [B, heads, T, d] of a self-attention."""
    parts = ops.split(part.linear(x, "q_proj", "k_proj", "v_proj"), ops.constant(2), 3)
    return [_heads(parts.output(i), heads) for i in range(3)]


def _heads(x: Any, heads: int) -> ov.Node:
    """Return [B, T, heads * d] as [B, heads, T, d]."""
    width = x.get_partial_shape()[2].get_length() if isinstance(x, ov.Output) else _width(x)
    return ops.transpose(ops.reshape(x, _ints(0, 0, heads, width // heads), True), _ints(0, 2, 1, 3))


def _width(node: ov.Node) -> int:
    return int(node.output(0).get_partial_shape()[-1].get_length())


def _joined(x: ov.Node) -> ov.Node:
    """Return [B, heads, T, d] as [B, T, heads * d]."""
    shape = x.output(0).get_partial_shape()
    width = shape[1].get_length() * shape[3].get_length()
    return ops.reshape(ops.transpose(x, _ints(0, 2, 1, 3)), _ints(0, 0, width), True)


def _attention(query: Any, key: Any, value: Any, mask: Any = None) -> ov.Node:
    if mask is None:
        return ops.scaled_dot_product_attention(query, key, value)
    return ops.scaled_dot_product_attention(query, key, value, mask)


def _cached(new: ov.Node, batch: ov.Node, beams: ov.Node, name: str, shape: WhisperShape) -> tuple[Any, Any]:
    """Return the keys or values of all tokens so far, and the node that keeps them."""
    heads, width = shape.decoder_heads, shape.head_width
    empty = ops.broadcast(
        ops.constant(np.float32(0)), ops.concat([batch, _ints(heads), _ints(0), _ints(width)], 0)
    )
    past = opset6.read_value(empty, name, np.float32, ov.PartialShape([-1, heads, -1, width]))
    joined = ops.concat([ops.gather(past, beams, ops.constant(0)), new], 2)
    return joined, opset6.assign(joined, name)


def _causal(positions: ov.Node, keys: ov.Node) -> ov.Node:
    """Return the mask [B, 1, T, S]: a token sees those up to its own position."""
    length = ops.gather(ops.shape_of(keys), ops.constant(2), ops.constant(0))
    places = ops.range(ops.constant(np.int64(0)), length, ops.constant(np.int64(1)), "i64")
    own = ops.unsqueeze(ops.unsqueeze(positions, ops.constant(1)), ops.constant(3))
    zero = ops.constant(np.float32(0))
    return ops.select(ops.less_equal(places, own), zero, ops.constant(_MIN))


def _ints(*values: int) -> ov.Node:
    return ops.constant(np.array(values, dtype=np.int64))


def _input(name: str, size: list[int], dtype: Any) -> ov.Node:
    node = ops.parameter(size, dtype, name=name)
    node.output(0).set_names({name})
    return node


def _output(node: Any, name: str) -> ov.Node:
    result = ops.result(node, name=name)
    result.output(0).set_names({name})
    return result


def _model(results: list[ov.Node], inputs: list[ov.Node], name: str) -> ov.Model:
    return ov.Model(results, inputs, name)
