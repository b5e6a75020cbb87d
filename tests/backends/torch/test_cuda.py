"""The torch backend on an NVIDIA GPU: graphs give what eager steps give, and text stays the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from specport.core.arrays import to_host
from specport.core.engine import Engine
from specport.core.policies.first_proposal import FirstProposal
from specport.core.policies.length_rules import (
    Fixed,
)
from specport.core.ports import Block, Row
from specport.core.sampling.params import SamplingParams
from specport.core.sequence import Generation
from specport.core.tree import TokenTree
from specport.drafters.model.drafter import ModelDrafter
from specport.models.source import ModelFiles
from specport.runtime.conversion import resolve
from specport.runtime.devices.profiles import load_profile
from specport.runtime.devices.registry import LoadOptions

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
if not torch.cuda.is_available():
    pytest.skip("no NVIDIA GPU that torch can use is here", allow_module_level=True)

from specport.backends.torch.load import load  # noqa: E402
from specport.backends.torch.runners import CudaGraphs, Eager  # noqa: E402
from support.tiny import tiny_models  # noqa: E402

IDS = [int(i) for i in np.random.default_rng(1).integers(3, 250, 200)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    folder = tmp_path_factory.mktemp("model")
    tiny_models.save_hf(folder, "qwen2")
    return resolve(str(folder), precision="bf16", weights="huggingface")


def model_on(files: ModelFiles, **options: Any) -> Any:
    return load(files, LoadOptions(load_profile("cuda"), **options)).model


def test_graphs_give_what_eager_steps_give(files: ModelFiles) -> None:
    graphs, eager = model_on(files, exact=False), model_on(files, exact=False)
    assert isinstance(graphs.passes.runner, CudaGraphs)
    eager.passes.runner = Eager(eager.passes.runner.module, "cuda")
    tree = TokenTree((5, 6, 7, 8), (-1, -1, 0, 1))
    found = []
    for model in (graphs, eager):
        handle = model.open(200)
        model.step([Row(handle, Block.chain(IDS[:100]), logits="last")])
        model.commit(handle, range(100))
        parts = []
        for _ in range(3):
            parts.append(to_host(model.step([Row(handle, tree.as_block())]).logits).copy())
            model.commit(handle, [1, 3])
        found.append(np.concatenate(parts))
    assert np.allclose(found[0], found[1], atol=1e-2)
    assert 0 < graphs.passes.runner.num_graphs <= len(load_profile("cuda").buckets)


def test_a_chain_is_what_steps_give(files: ModelFiles) -> None:
    model = model_on(files, role="draft")
    found = []
    for chained in (True, False):
        handle = model.open(200)
        model.step([Row(handle, Block.chain(IDS[:100]), logits="last")])
        model.commit(handle, range(100))
        if chained:
            found.append(model.chain.draft([Row(handle, Block.chain([5]))], 6).tokens[0].tolist())
            assert model.chain.runner.num_graphs == 1
            continue
        tokens = [5]
        for _ in range(6):
            logits = to_host(model.step([Row(handle, Block.chain(tokens[-1:]))]).logits)
            model.commit(handle, [0])
            tokens.append(int(logits[0].argmax()))
        found.append(tokens[1:])
    assert found[0] == found[1]


def test_a_cache_that_grew_is_captured_anew(files: ModelFiles) -> None:
    model = model_on(files, exact=False)
    found = []
    for _ in range(5):  # slots double at 2, 3 and 5
        handle = model.open(200)
        found.append(to_host(model.step([Row(handle, Block.chain(IDS[:8]))]).logits).copy())
        model.commit(handle, range(8))
    assert all(np.allclose(found[0], other, atol=1e-2) for other in found)


def test_a_step_does_not_depend_on_what_was_drafted_at_the_exit(files: ModelFiles) -> None:
    model = model_on(files, exit_layer=1)
    found = []
    for drafted in (0, 2, 4):
        handle = model.open(200)
        model.step([Row(handle, Block.chain(IDS[:100]), logits="last")])
        model.commit(handle, range(100))
        for token in IDS[100 : 100 + drafted]:
            model.early_exit.draft([Row(handle, Block.chain([token]))])
        found.append(to_host(model.step([Row(handle, Block.chain(IDS[100:104]))]).logits).copy())
    assert model.capabilities.exact
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])


def test_drafted_text_equals_plain_text(files: ModelFiles) -> None:
    target, draft = model_on(files), model_on(files, role="draft")

    def text(policy: Any) -> list[list[int]]:
        group = [Generation([*p], SamplingParams(), 60) for p in (IDS[:30], IDS[40:90])]
        for _ in Engine(target, policy).run(group):
            pass
        return [generation.tokens for generation in group]

    assert target.capabilities.exact
    drafter = ModelDrafter(draft, target.vocab_size)
    assert text(FirstProposal([drafter], lambda: Fixed(4))) == text(None)
