"""Every decoder architecture of the table runs on torch with the text of plain decoding, or is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import specport
from specport.conformance import tiny
from specport.conformance.architectures import ARCHITECTURES, configuration
from specport.core.arrays import to_host
from specport.core.ports import Block, Row
from specport.core.tree import TokenTree
from specport.errors import ModelError
from specport.runtime.conversion import resolve
from specport.runtime.profiles import load_profile
from specport.runtime.registry import LoadOptions

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from specport.backends.torch.load import load  # noqa: E402
from specport.quantize import random_model  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

IDS = [int(i) for i in np.random.default_rng(1).integers(3, 250, 90)]
CHUNKS = ((0, 40), (40, 47), (47, 48), (48, 75), (75, 90))
FAR = 1e-4
STATE_SPACE = "states of a kind that cannot be rolled back"
REFUSED = {
    "falcon-alibi": "ALiBi", "gpt_neo": "a mask of their own", "mamba": "takes no", "mamba2": "takes no",
    "falcon_mamba": "takes no", "bamba": STATE_SPACE, "falcon_h1": STATE_SPACE, "jamba": STATE_SPACE,
    "granitemoehybrid": STATE_SPACE, "recurrent_gemma": "takes no",
}  # fmt: skip
PROMPTS = ["hello world", "world world world", "12 12 12 12", "h"]


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECPORT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def logits_of_saved(folder: Path, name: str) -> Any:
    """Write a tiny model of an architecture with its tokenizer, and return transformers' logits of a text.

    A gated delta net steps token by token.
    """
    try:
        random_model.save(folder, configuration(name))
    except ModelError as error:
        pytest.skip(str(error))
    tiny.save_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    for module in model.modules():
        if hasattr(module, "chunk_gated_delta_rule"):
            module.chunk_gated_delta_rule = module.recurrent_gated_delta_rule
    with torch.no_grad():
        return model.eval()(torch.tensor([IDS]), use_cache=True).logits[0].numpy()


def tokens_of(folder: Path, draft: str) -> list[Any]:
    pipeline = specport.load(str(folder), draft=draft, device="torch-cpu", precision="fp32")
    together = [answer.token_ids for answer in pipeline.generate(PROMPTS, max_new_tokens=24)]
    pipeline.close()
    return together


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_runs_or_is_refused(name: str, tmp_path: Path) -> None:
    want = logits_of_saved(tmp_path, name)
    if name in REFUSED:
        with pytest.raises(ModelError, match=REFUSED[name]) as caught:
            tokens_of(tmp_path, "none")
        assert "\n" not in str(caught.value)
        return
    plain = tokens_of(tmp_path, "none")
    assert np.isfinite(want).all() and len({token for text in plain for token in text}) > 3, (
        "the model says nothing"
    )
    files = resolve(str(tmp_path), precision="fp32", weights="huggingface")
    model = load(files, LoadOptions(load_profile("torch-cpu"), exact=False)).model
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
    for draft in ("ngram", "recycle"):
        assert tokens_of(tmp_path, draft) == plain, draft
