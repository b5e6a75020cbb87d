"""Attention to an encoder's output as products: the same numbers, and no node of attention is left."""

from __future__ import annotations

import numpy as np
import pytest

ov = pytest.importorskip("openvino")

from openvino import opset15 as ops  # noqa: E402
from specport.backends.openvino.graph.cross import with_products, with_turned_keys  # noqa: E402
from specport.quantize.convert.openvino_core import core  # noqa: E402

WINDOWS, HEADS, FRAMES, WIDTH, TOKENS = 2, 3, 20, 4, 5


def graph(names: tuple[str, str]) -> ov.Model:
    inputs = []
    for name, rows in (("query", -1), (names[0], FRAMES), (names[1], FRAMES)):
        node = ops.parameter(ov.PartialShape([-1, HEADS, rows, WIDTH]), np.float32, name=name)
        node.output(0).set_names({name})
        inputs.append(node)
    return ov.Model([ops.result(ops.scaled_dot_product_attention(*inputs))], inputs, "attention")


def attentions(model: ov.Model) -> int:
    return sum(node.get_type_name() == "ScaledDotProductAttention" for node in model.get_ops())


def test_products_give_what_the_attention_gave() -> None:
    rng = np.random.default_rng(0)
    query = rng.normal(size=(WINDOWS, HEADS, TOKENS, WIDTH)).astype(np.float32)
    key, value = rng.normal(size=(2, WINDOWS, HEADS, FRAMES, WIDTH)).astype(np.float32)
    model, states = graph(("cross_key.0", "cross_value.0")), ops.parameter([2, 3], np.float32, name="states")
    with_products(model)
    assert attentions(model) == 0
    run = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = run({"query": query, "cross_key.0": key.swapaxes(2, 3).copy(), "cross_value.0": value})[0]
    scores = query @ key.swapaxes(2, 3) / np.sqrt(np.float32(WIDTH))
    weights = np.exp(scores - scores.max(axis=3, keepdims=True))
    expected = weights / weights.sum(axis=3, keepdims=True) @ value
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # The graph that gives the keys turns them, and leaves the values as they are.
    outputs = []
    for name in ("cross_key.0", "cross_value.0"):
        output = ops.broadcast(states, ops.constant(np.array([1, 5, 2, 3])))
        output.output(0).set_names({name})
        outputs.append(ops.result(output))
    cross = ov.Model(outputs, [states], "cross")
    with_turned_keys(cross)
    shapes = {port.any_name: [*port.shape] for port in cross.outputs}
    assert shapes == {"cross_key.0": [1, 5, 3, 2], "cross_value.0": [1, 5, 2, 3]}


def test_other_attention_stays() -> None:
    model = graph(("past_key", "past_value"))
    with_products(model)
    assert attentions(model) == 1
