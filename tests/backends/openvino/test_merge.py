"""Products that read the same become one: fewer of them, the same logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

ov = pytest.importorskip("openvino")
pytest.importorskip("optimum.intel")

from openvino import opset15 as ops  # noqa: E402
from specport.backends.openvino.graph import surgery  # noqa: E402
from specport.backends.openvino.graph.merge import PAIRS, TRIPLES, merge_products  # noqa: E402
from specport.quantize.convert.openvino_core import core  # noqa: E402
from support.processes.conversions import converting_here  # noqa: E402
from support.tiny import tiny_models  # noqa: E402

from specport.runtime.conversion import resolve  # noqa: E402

LAYERS = 2
IDS = [int(i) for i in np.random.default_rng(1).integers(3, 250, 40)]


@pytest.fixture(scope="module", params=["qwen2-int8", "llama-int4:asym", "gemma3_text-int4", "qwen3-fp32"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind, precision = request.param.split("-")
    root = tmp_path_factory.mktemp("merge")
    tiny_models.save_hf(root / "tiny", kind, LAYERS)
    with converting_here(root / "cache"):
        return resolve(str(root / "tiny"), precision=precision).folder


def products(model: ov.Model) -> int:
    return sum(node.get_type_name() == "MatMul" for node in model.get_ops())


def logits(model: ov.Model) -> np.ndarray:
    length = len(IDS)
    inputs = {
        "input_ids": np.array([IDS]),
        "attention_mask": np.ones((1, length), dtype=np.int64),
        "position_ids": np.arange(length)[None],
        "beam_idx": np.zeros(1, dtype=np.int32),
    }
    compiled = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    names = {name for port in compiled.inputs for name in port.names}
    found = compiled({name: value for name, value in inputs.items() if name in names})
    return np.array(found["logits"])


@pytest.mark.parametrize(("fewest", "groups", "fewer"), [(TRIPLES, 1, 2), (PAIRS, 2, 3)])
def test_fewer_products_give_the_same(folder: Path, fewest: int, groups: int, fewer: int) -> None:
    plain, merged = surgery.read_model(folder), surgery.read_model(folder)
    before = products(merged)
    assert merge_products(merged, fewest) == groups * LAYERS
    assert products(merged) == before - fewer * LAYERS
    assert np.allclose(logits(merged), logits(plain), atol=1e-4)


def test_what_has_different_forms_is_left_alone() -> None:
    rng = np.random.default_rng(0)
    rows = ops.parameter([-1, 8], np.float32)
    weights = [rng.standard_normal((width, 8)).astype(np.float32) for width in (3, 4, 5)]
    parts = [ops.matmul(rows, ops.constant(w), transpose_a=False, transpose_b=True) for w in weights[:2]]
    half = ops.convert(ops.constant(weights[2].astype(np.float16)), np.float32)
    parts.append(ops.matmul(rows, half, transpose_a=False, transpose_b=True))
    model = ov.Model([ops.concat(parts, 1)], [rows])
    assert merge_products(model, TRIPLES) == 0 and products(model) == 3


def test_experts_are_left_alone() -> None:
    """The weights of a mixture of experts are a matrix for each, all in one constant."""
    rng = np.random.default_rng(0)
    rows = ops.parameter([4, -1, 8], np.float32)
    weights = [rng.standard_normal((4, 5, 8)).astype(np.float32) for _ in range(2)]
    parts = [ops.matmul(rows, ops.constant(w), transpose_a=False, transpose_b=True) for w in weights]
    model = ov.Model([ops.concat(parts, 2)], [rows])
    assert merge_products(model, PAIRS) == 0 and products(model) == 2
