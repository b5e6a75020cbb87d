"""Heads on hidden states on real runtimes, with tiny models: they agree, and texts keep their law."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specport.api import load as load_pipeline
from specport.conformance.steps import host
from specport.core.engine import Engine
from specport.core.policies.first_proposal import FirstProposal
from specport.core.policies.length_rules import (
    Fixed,
)
from specport.core.ports import Block, Model, Row
from specport.core.sampling.params import SamplingParams
from specport.core.sequence import Generation
from specport.drafters.model.hidden_head import HiddenHeadDrafter
from specport.errors import DeviceError, InvalidInput, ModelError
from specport.models import shipped
from specport.models.kinds.recurrent import EPSILON, dequantized
from specport.runtime.conversion import resolve
from specport.runtime.devices.profiles import load_profile
from specport.runtime.devices.registry import LoadOptions, backend_for
from specport.runtime.loading import Loader

torch = pytest.importorskip("torch")
pytest.importorskip("openvino")
pytest.importorskip("optimum.intel")

from support.laws.runtime_law import check_sampled_texts  # noqa: E402
from support.processes.own_cache import own_cache  # noqa: E402, F401
from support.processor import exact_mode  # noqa: E402
from support.tiny import tiny_models  # noqa: E402
from support.tiny.tiny_head import COLUMNS, SHAPE, save_head, weights  # noqa: E402

DEVICES = ("xeon", "core-ultra-npu-emulated", "torch-cpu", "gaudi-emulated")
GREEDY = SamplingParams()
IDS = [int(i) for i in np.random.default_rng(1).integers(3, 250, 120)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a target, and its heads by name."""
    root = tmp_path_factory.mktemp("models")
    tiny_models.save_hf(root / "target", "llama")
    save_head(root / "head", root / "target")
    save_head(root / "whole", root / "target", columns=None)
    return {name: root / name for name in ("target", "head", "whole")}


def load(folders: dict[str, Path], device: str, head: str | None = "head", **options: Any) -> Model:
    profile = load_profile(device)
    backend = backend_for(profile)
    precision = "fp32" if backend.weights == "huggingface" else "int8"
    files = resolve(str(folders["target"]), precision=precision, weights=backend.weights)
    if head is not None:
        options |= {
            "hidden_head": resolve(str(folders[head]), precision="int8"),
            "hidden_layers": SHAPE.layers,
        }
    with exact_mode():
        model: Model = backend.load(files, LoadOptions(profile, **options)).model
    return model


def reference(folder: Path, hidden: dict[int, np.ndarray], tokens: list[int], columns: Any) -> Any:
    """Return the logits of each step of a chain, by the formulas of `Recurrent` in float64."""
    from transformers import AutoModelForCausalLM

    whole = AutoModelForCausalLM.from_pretrained(folder).float()
    table = whole.get_input_embeddings().weight.detach().numpy().astype(np.float64)
    head = whole.get_output_embeddings().weight.detach().numpy().astype(np.float64)
    head = head if columns is None else head[list(columns)]
    w = {name: array.astype(np.float64) for name, array in dequantized(weights(), SHAPE).items()}

    def norm(x: np.ndarray) -> np.ndarray:
        return x / np.sqrt(np.square(x).mean() + EPSILON)

    joined = np.concatenate([norm(hidden[layer].astype(np.float64)) for layer in SHAPE.layers])
    s = w["enter"] @ (w["enter.gain"] * joined)
    found = []
    for token in tokens:
        parts = [w["state.gain"] * norm(s), w["token.gain"] * norm(table[token])]
        s = w["keep"] * s + w["join"] @ np.concatenate(parts)
        for i in range(SHAPE.blocks):
            a, b = np.split(w[f"block.{i}.up"] @ (w[f"block.{i}.gain"] * norm(s)), 2)
            s = s + w[f"block.{i}.down"] @ (a / (1 + np.exp(-a)) * b)
        found.append(head @ (w["out.gain"] * norm(s)))
    return found


def states_of(model: Model, tokens: list[int]) -> dict[int, Any]:
    """Return the hidden states of these tokens, each layer [tokens, width]."""
    handle = model.open()
    try:
        output = model.step([Row(handle, Block.chain(tokens), logits="none", hidden="all")])
        return {layer: host(states).copy() for layer, states in output.hidden_of(0).items()}
    finally:
        model.close(handle)


def like(model: Model, array: np.ndarray) -> Any:
    """Return an array of the kind that the model's steps give."""
    return torch.from_numpy(array) if "torch" in type(model).__module__ else array


@pytest.mark.parametrize("name", ["head", "whole"])
@pytest.mark.parametrize("device", DEVICES)
def test_every_runtime_computes_the_formulas(device: str, name: str, folders: dict[str, Path]) -> None:
    """Two rows at once, then each alone, by steps and by greedy chains."""
    model = load(folders, device, name)
    head = model.hidden_head
    assert head is not None and head.layers == SHAPE.layers
    assert head.columns == (COLUMNS if name == "head" else None)
    hidden = states_of(model, IDS[:9])
    picked = {layer: like(model, states[[4, 8]]) for layer, states in hidden.items()}
    chains = [[7, 99, 30], [12, 12, 200]]
    wanted = [
        reference(folders["target"], {n: hidden[n][row] for n in SHAPE.layers}, chain, head.columns)
        for row, chain in zip((4, 8), chains, strict=True)
    ]
    states = first = head.begin(picked)
    for k in range(3):
        logits, states = head.step(states, [chain[k] for chain in chains])
        for row in range(2):
            error = np.abs(host(logits)[row] - wanted[row][k]).max()
            assert error < 0.1 * wanted[row][k].std(), (
                k,
                row,
            )  # activations and the target's rows are rounded to 8 bits
    for row in range(2):  # earlier states are still what they were
        drafted = head.draft(first[row : row + 1, :], [chains[row][0]], 2)
        again = head.begin({layer: states[row : row + 1, :] for layer, states in picked.items()})
        logits, after = head.step(again, [chains[row][0]])
        scores = host(logits)[0].astype(np.float64)
        column = int(scores.argmax())
        token = column if head.columns is None else head.columns[column]
        assert drafted.tokens[0, 0] == token
        chance = 1.0 / np.exp(scores - scores.max()).sum()
        assert drafted.confidences[0, 0] == pytest.approx(chance, rel=0.02)
        logits, after = head.step(after, [token])
        best = int(host(logits)[0].argmax())
        assert drafted.tokens[0, 1] == (best if head.columns is None else head.columns[best])
        assert np.allclose(host(drafted.states), host(after), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("device", DEVICES)
def test_plain_text_is_the_same_with_the_outputs_of_a_head(device: str, folders: dict[str, Path]) -> None:
    """Logits are bit-identical; greedy texts are, with and without drafts.

    The runtime of the NPU computes in 16 bits, where more outputs change which kernels are fused. There, the
    texts are compared on one loaded model only.
    """
    texts, logits, accepted = [], [], 0
    for name, drafts in ((None, False), ("head", False), ("head", True)):
        model = load(folders, device, name)
        handle = model.open()
        logits.append(host(model.step([Row(handle, Block.chain(IDS[:40]))]).logits).copy())
        model.close(handle)
        policy = None
        if drafts:
            assert model.hidden_head is not None
            drafter = HiddenHeadDrafter(model.hidden_head, model.vocab_size)
            policy = FirstProposal([drafter], lambda: Fixed(4), tree=model.capabilities.tree)
        engine = Engine(model, policy)
        generations = [Generation(IDS[start : start + 12], GREEDY, 24) for start in (0, 20, 40)]
        for _ in engine.run(generations):
            pass
        texts.append([g.tokens for g in generations])
        accepted += sum(g.metrics.num_draft_tokens for g in generations)
    assert np.array_equal(logits[1], logits[2]) and texts[1] == texts[2] and accepted > 0
    if device != "core-ultra-npu-emulated":
        assert np.array_equal(logits[0], logits[1]) and texts[0] == texts[1]


@pytest.mark.parametrize("device", ["xeon", "torch-cpu"])
def test_sampled_texts_keep_the_law(device: str, folders: dict[str, Path]) -> None:
    """Chi-square of 600 seeded texts of three tokens against the exact law of the target's own logits."""
    target = load(folders, device, "whole")
    assert target.hidden_head is not None
    drafter = HiddenHeadDrafter(target.hidden_head, target.vocab_size)
    engine = Engine(target, FirstProposal([drafter], lambda: Fixed(3), tree=False))
    texts = check_sampled_texts(engine, IDS[:12], SamplingParams(temperature=1.5))
    assert sum(text.num_draft_tokens for text in texts) > 1000


@pytest.mark.parametrize("device", ["xeon", "torch-cpu"])
def test_a_head_is_a_draft_by_its_name_and_by_default(
    device: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    target, head = str(folders["target"]), str(folders["head"])
    plain = load_pipeline(target, draft="none", device=device).generate("hello world", max_new_tokens=20)
    for draft in (head, f"ngram|{head}"):
        pipeline = load_pipeline(target, draft=draft, device=device, policy="fixed")
        result = pipeline.generate("hello world", max_new_tokens=20)
        assert result.token_ids == plain.token_ids and result.metrics.num_draft_tokens > 0
    monkeypatch.setattr(shipped, "FOLDER", folders["head"].parent)
    pipeline = load_pipeline(target, device=device)
    assert pipeline._engine.model.hidden_head is not None
    assert pipeline.generate("hello world", max_new_tokens=20).token_ids == plain.token_ids


def test_wrong_uses_of_a_head_are_explained(folders: dict[str, Path]) -> None:
    target, head, whole = (str(folders[name]) for name in ("target", "head", "whole"))
    with pytest.raises(ModelError, match="not a model"):
        load_pipeline(head, draft="none", device="xeon")
    with pytest.raises(InvalidInput, match="two draft heads"):
        load_pipeline(target, draft=f"{head}|{whole}", device="xeon")
    with pytest.raises(InvalidInput, match="graft"):
        load_pipeline(target, draft=f"graft({head})", device="xeon")
    loader = Loader.on("xeon")
    files = loader.files(target, "int8")
    loaded = loader.target_with(files, True)
    from specport.text.tokenizer import load_tokenizer

    with pytest.raises(DeviceError, match="no draft head"):
        loader.draft(head, None, files, load_tokenizer(files.folder), loaded)
    other = save_head(folders["head"].parent / "other", folders["target"], tokenizer="another")
    with pytest.raises(ModelError, match="tokenizer"):
        load_pipeline(target, draft=str(other), device="xeon")
