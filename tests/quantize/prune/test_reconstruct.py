"""Pruning with reconstruction: remaining weights are fitted to replace what was dropped."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from specport.errors import ModelError

torch = pytest.importorskip("torch")

from specport.quantize.prune import reconstruct  # noqa: E402
from specport.quantize.prune.prune import drop_layers  # noqa: E402
from support.tiny import tiny_models  # noqa: E402

RNG = np.random.default_rng(0)
TEXTS = [RNG.integers(3, 250, size=length).tolist() for length in (40, 64, 51, 33, 80, 72) * 4]
UNSEEN = torch.tensor(RNG.integers(3, 250, size=(4, 48)))


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model(UNSEEN).logits


def off(whole: Any, cut: Any) -> float:
    return float((whole - cut).norm() / whole.norm())


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_the_channels_that_add_most_stay(kind: str) -> None:
    model = tiny_models.hf_model(kind, 3)
    mlp = model.model.layers[1].mlp
    silent = torch.arange(0, mlp.down_proj.in_features, 2)
    with torch.no_grad():  # every second channel adds nothing: without them nothing changes
        for layer in model.model.layers:
            layer.mlp.down_proj.weight[:, silent] = 0.0
    whole = logits(model)
    assert reconstruct.prune(model, (), 0.5, TEXTS) == (64, 128)
    assert off(whole, logits(model)) < 1e-4
    assert model.config.intermediate_size == mlp.gate_proj.out_features == mlp.down_proj.in_features == 64


def test_shares_are_rounded_to_groups_and_one_stays() -> None:
    for share in (0.7, 0.1):
        assert reconstruct.prune(tiny_models.hf_model("llama", 3), (), share, TEXTS[:2]) == (64, 128)


def test_channels_that_stay_take_over_from_those_that_go() -> None:
    model, bare = tiny_models.hf_model("llama", 3), tiny_models.hf_model("llama", 3)
    for made in (model, bare):
        with torch.no_grad():
            for layer in made.model.layers:  # odd channels do what their neighbours do, and count for less
                mlp = layer.mlp
                for linear in (mlp.gate_proj, mlp.up_proj):
                    linear.weight[1::2] = linear.weight[::2]
                mlp.down_proj.weight[:, 1::2] *= 0.05
    whole = logits(model)
    assert reconstruct.prune(model, (), 0.5, TEXTS) == (64, 128)
    with torch.no_grad():
        for layer in bare.model.layers:
            layer.mlp.down_proj.weight[:, 1::2] = 0.0
    assert off(whole, logits(model)) < 0.4 * off(whole, logits(bare))


@pytest.mark.parametrize("dropped", [(1,), (2,), (3,), (1, 2)])
def test_layers_that_stay_take_over_from_those_that_go(dropped: tuple[int, ...]) -> None:
    model, bare = tiny_models.hf_model("llama", 4), tiny_models.hf_model("llama", 4)
    whole = logits(model)
    reconstruct.prune(model, dropped, 1.0, TEXTS)
    drop_layers(bare, dropped)
    assert len(model.model.layers) == model.config.num_hidden_layers == 4 - len(dropped)
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == list(range(4 - len(dropped)))
    assert off(whole, logits(model)) < 0.97 * off(whole, logits(bare))


def test_nothing_gone_changes_nothing() -> None:
    model = tiny_models.hf_model("llama", 3)
    whole = logits(model)
    reconstruct.prune(model, (), 1.0, TEXTS)
    assert off(whole, logits(model)) < 1e-4


def test_another_feed_forward_part_loses_layers_only() -> None:
    model = tiny_models.hf_model("llama", 3)
    del model.model.layers[0].mlp.gate_proj
    with pytest.raises(ModelError, match="without --mlp"):
        reconstruct.prune(model, (), 0.5, TEXTS)
    assert reconstruct.prune(model, (1,), 1.0, TEXTS) == (0, 0)
    assert len(model.model.layers) == 2
