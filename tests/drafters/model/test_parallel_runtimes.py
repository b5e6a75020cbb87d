"""Parallel drafts on real runtimes, with tiny models: what was trained is what runs; texts keep their law."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specport.conformance.steps import host
from specport.core.engine import Engine
from specport.core.policies.first_proposal import FirstProposal
from specport.core.policies.length_rules import (
    Fixed,
)
from specport.core.ports import DraftRequest, Model, Plan
from specport.core.sampling.params import SamplingParams
from specport.core.sampling.sampler import Sampler
from specport.core.sequence import Generation
from specport.drafters.model.head import DraftHead
from specport.drafters.model.kv_cache import DraftCache
from specport.drafters.model.parallel import ParallelDrafter
from specport.models.kinds.bigrams import PAIR, Bigrams
from specport.runtime.conversion import resolve
from specport.runtime.devices.profiles import load_profile
from specport.runtime.devices.registry import LoadOptions, backend_for

torch = pytest.importorskip("torch")
pytest.importorskip("openvino")
pytest.importorskip("optimum.intel")

from specport.quantize.train import batches  # noqa: E402
from specport.quantize.train.parallel.chains import all_chains, pack  # noqa: E402
from specport.quantize.train.parallel.training import ParallelStudent, add_mask  # noqa: E402
from specport.quantize.train.recipe import Recipe  # noqa: E402
from support.laws.runtime_law import check_sampled_texts  # noqa: E402
from support.processes.own_cache import own_cache  # noqa: E402, F401
from support.processor import exact_mode  # noqa: E402
from support.tiny import tiny_models  # noqa: E402
from support.tiny.tiny_parallel import VOCAB, dialogues  # noqa: E402

DEPTH, MASK = 4, VOCAB
DEVICES = ("xeon", "core-ultra-npu-emulated", "torch-cpu", "gaudi-emulated")
GREEDY = SamplingParams()
IDS = [int(i) for i in np.random.default_rng(1).integers(3, 250, 120)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a target, and a draft that is the target with a row for MASK."""
    root = tmp_path_factory.mktemp("models")
    tiny_models.save_hf(root / "target", "llama")
    draft = tiny_models.hf_model("llama")
    assert add_mask(draft, VOCAB, []) == MASK
    draft.save_pretrained(root / "draft")
    tiny_models.save_tokenizer(root / "draft")
    return {"target": root / "target", "draft": root / "draft"}


def load(folder: Path, device: str, **options: Any) -> Model:
    """Load a model; drafts compute in float32, to be compared with what was trained."""
    profile = load_profile(device)
    backend = backend_for(profile)
    if options.get("role") == "draft" and device == "xeon":
        profile = replace(profile, draft=profile.fallback)
    if options.get("role") == "draft" and device == "core-ultra-npu-emulated":
        profile = replace(profile, device="CPU", draft={"INFERENCE_PRECISION_HINT": "f32"})
    precision = "fp32" if backend.weights == "huggingface" else "fp16"
    files = resolve(str(folder), precision=precision, weights=backend.weights)
    with exact_mode():
        model: Model = backend.load(files, LoadOptions(profile, **options)).model
    return model


@pytest.fixture(scope="module")
def drafts(folders: dict[str, Path]) -> dict[str, Model]:
    return {device: load(folders["draft"], device, role="draft") for device in DEVICES}


def request(context: list[int], key: int = 0) -> DraftRequest:
    return DraftRequest(key, context, Plan(DEPTH), Sampler(GREEDY))


@pytest.mark.parametrize("device", DEVICES)
def test_each_row_gives_what_it_gives_in_training(
    device: str, folders: dict[str, Path], drafts: dict[str, Model]
) -> None:
    """The logits of every draft of a text, by the packed rows of training and by passes at run time."""
    from transformers import AutoModelForCausalLM

    whole = AutoModelForCausalLM.from_pretrained(folders["draft"]).float().eval()
    (text,) = dialogues(1, 3, (18, 19))
    batch = batches.batch([text], "cpu")
    packed = pack(batch, [all_chains(len(text.tokens), text.start, DEPTH)], MASK)
    student = ParallelStudent(whole, range(MASK), Recipe(parallel=DEPTH), MASK).eval()
    with torch.no_grad():
        trained = (student.outputs(packed) @ student.head.T).numpy()
    where = zip(packed.facts["columns"].tolist(), packed.prediction_depths.tolist(), strict=True)
    row_of = {place: row for row, place in enumerate(where)}
    cache = DraftCache(drafts[device], DraftHead(MASK), 256)
    tokens, compared = text.tokens.tolist(), 0
    for anchor in range(text.start, len(tokens)):  # the cache follows the text from pass to pass
        (rows,) = cache.read([request(tokens[: anchor + 1])], [[MASK] * (DEPTH - 1)])
        assert len(rows) == DEPTH
        for depth, row in enumerate(rows):
            if (anchor, depth) in row_of:
                wanted = trained[row_of[anchor, depth]]
                assert np.abs(host(row)[:MASK] - wanted).max() < 0.03 * wanted.std(), (anchor, depth)
                compared += 1
    assert compared == len(trained) - 1  # all but the first token of the answer, which the prompt predicts
    cache.forget(0)


@pytest.mark.parametrize("device", DEVICES)
def test_masks_do_not_stay_in_the_cache(device: str, drafts: dict[str, Model]) -> None:
    """Logits token by token, with parallel passes in between, are those without them."""
    model, found = drafts[device], []
    for masks in (0, DEPTH - 1):
        cache, logits = DraftCache(model, DraftHead(MASK), 256), []
        for length in (40, 41, 44, 45, 60, 61):
            context = IDS[:length]
            cache.read([request(context)], [[MASK] * masks])
            (row,) = cache.catch_up([request([*context, 7])])
            logits.append(host(row))
            (row,) = cache.catch_up([request([*context, 9])])
            logits.append(host(row))
        cache.forget(0)
        found.append(np.stack(logits))
    assert np.abs(found[0] - found[1]).max() < 0.02 * found[0].std()


def engine_of(target: Model, draft: Model | None) -> Engine:
    if draft is None:
        return Engine(target)
    rng, pairs = np.random.default_rng(4), np.zeros(400, dtype=PAIR)
    pairs["before"], pairs["token"] = np.divmod(np.sort(rng.choice(VOCAB**2, 400, replace=False)), VOCAB)
    pairs["gain"] = rng.uniform(0.0, 6.0, 400)
    temperatures = (1.0, 1.4, 1.8, 0.7)
    drafter = ParallelDrafter(draft, target.vocab_size, MASK, temperatures, bigrams=Bigrams(pairs))
    return Engine(target, FirstProposal([drafter], lambda: Fixed(DEPTH), tree=target.capabilities.tree))


@pytest.mark.parametrize("device", DEVICES)
def test_greedy_text_equals_plain_decoding(
    device: str, folders: dict[str, Path], drafts: dict[str, Model]
) -> None:
    target = load(folders["target"], device)
    texts, accepted = [], 0
    for draft in (None, drafts[device]):
        engine = engine_of(target, draft)
        generations = [Generation(IDS[start : start + 12], GREEDY, 24) for start in (0, 20, 40)]
        for _ in engine.run(generations):
            pass
        texts.append([g.tokens for g in generations])
        accepted += sum(g.metrics.num_accepted_tokens for g in generations)
    assert texts[0] == texts[1] and accepted > 0


@pytest.mark.parametrize("device", ["xeon", "torch-cpu"])
def test_sampled_texts_keep_the_law(device: str, folders: dict[str, Path], drafts: dict[str, Model]) -> None:
    """Chi-square of 600 seeded texts of three tokens against the exact law of the target's own logits."""
    engine = engine_of(load(folders["target"], device), drafts[device])
    texts = check_sampled_texts(engine, IDS[:12], SamplingParams(temperature=0.6))
    assert sum(text.num_accepted_tokens for text in texts) > 100
