"""Training with the rounding of INT4: the grid is NNCF's own, and gradients pass through it."""

from __future__ import annotations

import numpy as np
import pytest

from specport.models.precision import parse

torch = pytest.importorskip("torch")

from specport.quantize.prune.prune import decoder_layers  # noqa: E402
from specport.quantize.train import rounding  # noqa: E402
from support.tiny import tiny_models  # noqa: E402

WIDTHS = {64: 64, 128: 64, 96: 32}  # inputs of a layer, and the group that NNCF makes of 64 there


def by_nncf(weight: np.ndarray, precision: str) -> np.ndarray:
    """Return a weight [out, in] as NNCF stores it, decompressed by OpenVINO."""
    nncf, ov = pytest.importorskip("nncf"), pytest.importorskip("openvino")
    from openvino import opset15 as ops
    from specport.quantize.convert.compress import int4_options

    rows = ops.parameter([-1, weight.shape[1]], np.float32)
    product = ops.matmul(rows, ops.constant(weight), transpose_a=False, transpose_b=True)
    about = int4_options(parse(precision), 1)
    model = nncf.compress_weights(ov.Model([product], [rows]), all_layers=True, **about)
    f32 = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    found = ov.compile_model(model, "CPU", f32)(np.eye(weight.shape[1], dtype=np.float32))
    return np.asarray(found[0]).T


@pytest.mark.parametrize("precision", ["int4", "int4:asym"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_grid_is_that_of_nncf(width: int, precision: str) -> None:
    rng = np.random.default_rng(width)
    weight = (0.05 * rng.standard_normal((48, width))).astype(np.float32)
    weight[3, :64] = np.abs(weight[3, :64])  # all on one side of zero
    weight[4] = 0.0
    wanted = parse(precision)
    group = rounding.group_size(width, wanted.group)
    assert group == WIDTHS[width]
    ours = rounding.on_grid(torch.from_numpy(weight), group, "asym" in wanted.options).numpy()
    theirs = by_nncf(weight, precision)
    # Scales are stored in fp16, which is off by 8 / 2,048 of a step at most.
    assert np.abs(ours - theirs).max() < 4e-3 * np.abs(weight).max() / 7


def test_layers_are_rounded_while_it_lasts_and_keep_what_they_learn() -> None:
    model = tiny_models.hf_model("llama", 2)
    layer = decoder_layers(model)[0].mlp.down_proj
    before = layer.weight.detach().clone()
    head = model.get_output_embeddings().weight.detach().clone()
    with rounding.rounded(model, "int4:asym"):
        grid = rounding.on_grid(before, rounding.group_size(layer.in_features, 64), True)
        assert torch.equal(layer.weight, grid) and not torch.equal(grid, before)
        assert torch.equal(model.get_output_embeddings().weight, head)
        given = torch.randn(5, layer.in_features)
        layer(given).sum().backward()
        original = layer.parametrizations.weight.original
        # As if it were not rounded.
        assert torch.allclose(original.grad, given.sum(dim=0).expand_as(before))
        with torch.no_grad():
            original.add_(0.5)
    assert type(layer) is torch.nn.Linear and torch.equal(layer.weight, before + 0.5)
    assert [*dict(model.named_parameters())] == [*dict(tiny_models.hf_model("llama", 2).named_parameters())]


@pytest.mark.parametrize("precision", ["int8", "fp32", "int4:ratio=0.8"])
def test_other_precisions_leave_weights_alone(precision: str) -> None:
    model = tiny_models.hf_model("llama", 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with rounding.rounded(model, precision):
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_what_was_rounded_is_put_right_after_an_error() -> None:
    model = tiny_models.hf_model("llama", 2)
    with pytest.raises(RuntimeError), rounding.rounded(model, "int4"):
        raise RuntimeError
    assert not any(hasattr(module, "parametrizations") for module in model.modules())
