"""Every decoder architecture of the table runs on torch with the text of plain decoding, or is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.own_cache import own_cache  # noqa: F401

from specport.conformance import tiny
from specport.conformance.architectures import ARCHITECTURES, configuration
from specport.core.arrays import to_host
from specport.core.engine import Engine
from specport.core.policies.first_proposal import FirstProposal
from specport.core.policies.length_rules import Fixed
from specport.core.ports import Block, Drafter, Row
from specport.core.sampling.params import SamplingParams
from specport.core.sequence import Generation
from specport.core.tree import TokenTree
from specport.drafters.retrieval.ngram import NgramDrafter
from specport.drafters.retrieval.recycle import RecycleDrafter
from specport.errors import ModelError
from specport.runtime.conversion import resolve
from specport.runtime.profiles import load_profile
from specport.runtime.registry import LoadOptions

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from specport.backends.torch.load import load  # noqa: E402
from specport.backends.torch.slots.model import SlotModel  # noqa: E402
from specport.quantize import random_model  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

IDS = [int(i) for i in np.random.default_rng(1).integers(3, 250, 90)]
CHUNKS = ((0, 40), (40, 47), (47, 48), (48, 75), (75, 90))
FAR = 1e-4
STATE_SPACE = "states of a kind that cannot be rolled back"
REFUSED = {
    "falcon-alibi": "ALiBi", "gpt_neo": "a mask of their own", "mamba": "takes no", "mamba2": "takes no",
    "falcon_mamba": "takes no", "bamba": STATE_SPACE, "falcon_h1": STATE_SPACE,
    "jamba": f"{STATE_SPACE}|transformers cannot run it|do not run on this cache",
    "granitemoehybrid": STATE_SPACE, "recurrent_gemma": "keep their states themselves",
}  # fmt: skip
if transformers.__version__ < "5":  # masks and tables of their own, for whole texts
    REFUSED |= {"mpt": "differ from those of", "xglm": "differ from those of"}
    REFUSED |= {"phimoe": "do not run as a step"}
PROMPTS = (IDS[:17], IDS[20:28] * 3, IDS[40:70], IDS[80:81])


def save(folder: Path, name: str) -> None:
    """Write a tiny model of an architecture with its tokenizer."""
    try:
        random_model.save(folder, configuration(name))
    except ModelError as error:
        pytest.skip(str(error))
    tiny.save_tokenizer(folder)


def logits_of_transformers(folder: Path) -> Any:
    """Return logits of a text. A gated delta net steps token by token: chunks round far more coarsely."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    for module in model.modules():
        if hasattr(module, "chunk_gated_delta_rule"):
            module.chunk_gated_delta_rule = module.recurrent_gated_delta_rule
    with torch.no_grad():
        return model.eval()(torch.tensor([IDS]), use_cache=True).logits[0].numpy()


def loaded(folder: Path, device: str = "torch-cpu", **options: Any) -> SlotModel:
    files = resolve(str(folder), precision="fp32", weights="huggingface")
    model = load(files, LoadOptions(load_profile(device), **options)).model
    assert isinstance(model, SlotModel)
    model.cache.states.chunked = False  # transformers' chunks round too coarsely to compare
    return model


def texts(model: SlotModel, drafter: Drafter | None, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return greedy texts, generated together."""
    tree = model.capabilities.tree
    policy = FirstProposal([drafter], lambda: Fixed(4), tree=tree) if drafter else None
    group = [Generation([*prompt], SamplingParams(), 20) for prompt in prompts]
    for _ in Engine(model, policy).run(group):
        pass
    return [generation.tokens[generation.num_prompt_tokens :] for generation in group]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_runs_or_is_refused(name: str, tmp_path: Path) -> None:
    save(tmp_path, name)
    if name in REFUSED:
        with pytest.raises(ModelError, match=REFUSED[name]) as caught:
            loaded(tmp_path)
        assert "\n" not in str(caught.value)
        return
    want = logits_of_transformers(tmp_path)
    model = loaded(tmp_path, exact=False)
    handle = model.open()
    for start, stop in CHUNKS:
        found = to_host(model.step([Row(handle, Block.chain(IDS[start:stop]))]).logits)
        assert np.abs(found - want[start:stop]).max() < FAR
        model.commit(handle, range(stop - start))
    if model.capabilities.tree:
        model.truncate(handle, 60)
        tree = TokenTree((5, IDS[60], 6, IDS[61], 7, IDS[62]), (-1, -1, 1, 1, 3, 3)).as_block()
        found = to_host(model.step([Row(handle, tree)]).logits)
        assert np.abs(found[[1, 3, 5]] - want[60:63]).max() < FAR
        model.commit(handle, [1, 3, 5])
        found = to_host(model.step([Row(handle, Block.chain(IDS[63:90]))]).logits)
        assert np.abs(found - want[63:90]).max() < FAR
    exact = loaded(tmp_path)
    assert exact.capabilities.exact
    plain = [texts(exact, None, [prompt])[0] for prompt in PROMPTS]
    assert len({token for text in plain for token in text}) > 3, "the model says nothing"
    for drafter in (None, NgramDrafter(), RecycleDrafter(exact.vocab_size)):
        assert texts(exact, drafter, PROMPTS) == plain


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss", "qwen3_moe", "bloom", "deepseek_v3", "lfm2"])
def test_graphs_hold_it_or_it_is_refused(name: str, tmp_path: Path) -> None:
    """What waits for the device cannot be an HPU graph: transformers 4 counts the tokens of each expert."""
    save(tmp_path, name)
    want = logits_of_transformers(tmp_path)
    counts = name in ("gpt_oss", "qwen3_moe", "deepseek_v3") and transformers.__version__ < "5"
    if counts:
        with pytest.raises(ModelError, match="waits for the device"):
            loaded(tmp_path, "gaudi-emulated")
        return
    model = loaded(tmp_path, "gaudi-emulated", exact=False)
    handle = model.open()
    for start, stop in CHUNKS:
        found = to_host(model.step([Row(handle, Block.chain(IDS[start:stop]))]).logits)
        assert np.abs(found - want[start:stop]).max() < FAR
        model.commit(handle, range(stop - start))
