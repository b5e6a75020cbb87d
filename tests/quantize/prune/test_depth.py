"""Ranking of layers: the measures, the search, and dropping layers from a graph."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest

from specport.calibration.target_text import Text
from specport.errors import ModelError

ov = pytest.importorskip("openvino")

from specport.backends.openvino.graph import layers, surgery  # noqa: E402
from specport.quantize.convert.export import export  # noqa: E402
from specport.quantize.prune import depth, ir  # noqa: E402
from specport.quantize.prune.probe import Probe  # noqa: E402
from specport.quantize.prune.prune import drop_layers  # noqa: E402
from support.tiny import tiny_models  # noqa: E402

pytestmark = pytest.mark.stack
LAYERS = 5
F32 = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
TEXT = Text((5, 90, 41, 33), (200, 12, 5, 77, 31, 9))


def test_angular_distance_is_the_angle_over_a_half_turn() -> None:
    streams = np.array([[[1, 0]], [[1, 1]], [[0, 2]], [[0, -1]]], dtype=np.float32)
    assert np.allclose(depth.angular_distance(streams), [0.25, 0.25, 1.0])
    assert np.allclose(depth.angular_distance(streams, 2), [0.5, 0.75])
    assert np.allclose(depth.block_influence(streams), [1 - np.sqrt(0.5), 1 - np.sqrt(0.5), 2.0])


def test_the_first_layer_stays_though_it_changes_least() -> None:
    angles = np.cumsum([0, 0.0, 0.3, 0.1, 0.2, 0.4])
    streams = np.stack([np.cos(angles), np.sin(angles)], axis=1)[:, None].astype(np.float32)
    assert depth.by_angle(streams, 2) == (2, 3)
    assert depth.by_block(streams, 2) == (2, 3)
    assert depth.by_block(streams, 0) == ()


def test_the_search_drops_what_costs_least_agreement_first() -> None:
    worth = {0: 0.5, 1: 0.05, 2: 0.2, 3: 0.01, 4: 0.1}
    asked: list[tuple[int, ...]] = []

    def agreement(gone: Collection[int]) -> float:
        asked.append(tuple(gone))
        return 0.9 - sum(worth[layer] for layer in gone)

    found = depth.by_agreement(agreement, 5, 3)
    assert found.dropped_by_count == ((), (3,), (3, 1), (3, 1, 4))
    assert np.allclose(found.agreements, [0.9, 0.89, 0.84, 0.74])
    assert all(0 not in gone for gone in asked) and len(asked) == 1 + 4 + 3 + 2
    assert depth.by_agreement(agreement, 5, 4, floor=0.85).dropped_by_count[-1] == (3, 1)


def test_other_measures_drop_by_the_residual_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    angles = np.cumsum([0, 0.0, 0.3, 0.1, 0.25, 0.2, 0.4])
    streams = np.stack([np.cos(angles), np.sin(angles)], axis=1)[:, None].astype(np.float32)
    shares = {0: 0.9, 1: 0.8, 2: 0.6, 3: 0.2}
    for measure, gone in (
        ("angle", ((), (2,), (2, 4), (2, 4, 3))),
        ("influence", ((), (2,), (2, 4), (2, 4, 3))),
        ("block", ((), (2,), (2, 3), (2, 3, 4))),
    ):
        found = depth.by_measure(streams, measure, lambda dropped: shares[len(dropped)], range(4))
        assert found == depth.Dropping(gone, (0.9, 0.8, 0.6, 0.2))
    assert (
        len(
            depth.by_measure(streams, "angle", lambda d: shares[len(d)], range(4), floor=0.7).dropped_by_count
        )
        == 3
    )


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the IR of a random model with five layers."""
    place = tmp_path_factory.mktemp("model")
    tiny_models.save_hf(place / "hf", request.param, num_hidden_layers=LAYERS)
    (place / "ir").mkdir()
    export(place / "hf", place / "ir", "fp16")
    return place


@pytest.mark.filterwarnings("ignore")
def test_a_layer_that_is_switched_off_is_as_good_as_dropped(folder: Path, tmp_path: Path) -> None:
    probe = Probe(folder / "ir", "CPU", F32)
    assert probe.num_layers == LAYERS
    whole = probe.choices(TEXT)
    gone = (1, 3)
    switched = probe.logits(TEXT, gone).copy()
    ir.drop_layers(folder / "ir", tmp_path / "cut", gone)
    cut = Probe(tmp_path / "cut", "CPU", F32)
    assert cut.num_layers == LAYERS - len(gone)
    assert np.array_equal(cut.logits(TEXT), switched)
    assert not np.array_equal(probe.logits(TEXT), switched)
    assert np.array_equal(probe.choices(TEXT), whole)  # nothing is left of the last reading
    assert 0.0 <= probe.agreement([TEXT], gone) <= 1.0
    few = Probe(folder / "ir", "CPU", F32, head=sorted({*TEXT.answer, *whole.tolist()}))
    assert np.array_equal(few.choices(TEXT), whole)
    # Beside its head, a draft proposes what the text has had until then.
    least = Probe(folder / "ir", "CPU", F32, head=[250])
    for place, chosen in enumerate(least.choices(TEXT)):
        had = sorted({250, *TEXT.prompt, *TEXT.answer[:place]})
        assert chosen == had[int(np.argmax(probe.logits(TEXT)[place, had]))]
    assert probe.streams(TEXT).shape == (LAYERS + 1, len(TEXT.answer), 64)

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "hf").eval()
    drop_layers(model, gone)
    ids = torch.tensor([[*TEXT.prompt, *TEXT.answer[:-1]]])
    with torch.no_grad():
        want = model(ids).logits[0, len(TEXT.prompt) - 1 :].numpy()
    assert np.abs(want - switched).max() < 0.02 * np.abs(want).max()
    config = AutoConfig.from_pretrained(tmp_path / "cut")
    assert config.num_hidden_layers == model.config.num_hidden_layers == LAYERS - 2


def test_layers_that_are_not_there_cannot_go(folder: Path) -> None:
    for wrong in ((0,), (LAYERS,)):
        with pytest.raises(ModelError, match="cannot be dropped"):
            layers.drop(surgery.read_model(folder / "ir"), wrong)
    with pytest.raises(ModelError, match="cannot be dropped"):
        drop_layers(tiny_models.hf_model("llama"), (7,))
