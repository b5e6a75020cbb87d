"""Chains that a draft on torch writes in one call: the tokens that drafting step by step gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specport.core.arrays import to_host
from specport.core.ports import Block, Row
from specport.core.tree import TokenTree
from specport.runtime.conversion import resolve
from specport.runtime.devices.profiles import load_profile
from specport.runtime.devices.registry import LoadOptions

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from specport.backends.torch.load import load  # noqa: E402
from specport.backends.torch.slots.model import SlotModel  # noqa: E402
from support.tiny import tiny_models  # noqa: E402

KINDS = ("llama", "gemma3_text")
DEVICES = ("torch-cpu", "gaudi-emulated")
IDS = [int(i) for i in np.random.default_rng(1).integers(3, 250, 240)]
DEPTH = 5


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_models.save_kinds(tmp_path_factory.mktemp("models"), KINDS)


def draft_on(folder: Path, device: str = "torch-cpu", precision: str = "fp32", **options: Any) -> Any:
    files = resolve(str(folder), precision=precision, weights="huggingface")
    return load(files, LoadOptions(load_profile(device), **{"role": "draft", **options})).model


@pytest.fixture(scope="module")
def llama(folders: dict[str, Path]) -> Any:
    model = draft_on(folders["llama"])
    assert isinstance(model, SlotModel) and model.chain is not None and model.chain.max_tokens == 64
    return model


def read(model: Any, tokens: Sequence[int]) -> Any:
    handle = model.open()
    model.step([Row(handle, Block.chain(tokens), logits="last")])
    model.commit(handle, range(len(tokens)))
    return handle


def stepwise(
    model: Any, handle: Any, tokens: Sequence[int], depth: int, vocab: int | None = None
) -> tuple[list[int], list[float]]:
    """Return what `chain.draft` finds, a step a token; the same is committed: all but the last."""
    found, sure, new = [], [], [*tokens]
    for _ in range(depth):
        output = model.step([Row(handle, Block.chain(new), logits="last")])
        logits = to_host(output.logits)[-1, :vocab].astype(np.float64)
        model.commit(handle, range(len(new)))
        new = [int(logits.argmax())]
        found += new
        sure.append(1 / np.exp(logits - logits.max()).sum())
    return found, sure


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_chain_is_what_steps_give(kind: str, device: str, precision: str, folders: dict[str, Path]) -> None:
    model = draft_on(folders[kind], device, precision)
    one, other = read(model, IDS[:120]), read(model, IDS[:120])
    for turn, new in enumerate((IDS[120:121], IDS[121:124], IDS[124:126])):  # past the sliding window
        want, sure = stepwise(model, one, new, DEPTH)
        chains = model.chain.draft([Row(other, Block.chain(new))], DEPTH)
        assert chains.tokens.tolist() == [want]
        assert np.allclose(chains.confidences, [sure], atol=1e-4)
        kept = len(new) + turn  # the target rejected the rest
        model.commit(other, range(kept))
        model.truncate(one, other.length)
    assert one.length == other.length == 120 + 1 + 3 + 2 + 0 + 1 + 2


def test_a_whole_chain_may_be_committed(llama: Any) -> None:
    one, other = read(llama, IDS[:30]), read(llama, IDS[:30])
    want, _ = stepwise(llama, one, IDS[30:31], DEPTH)
    found = llama.chain.draft([Row(other, Block.chain(IDS[30:31]))], DEPTH).tokens[0].tolist()
    assert found == want
    llama.commit(other, range(DEPTH))
    assert other.length == one.length == 30 + DEPTH
    a, b = (to_host(llama.step([Row(h, Block.chain([7, 8]))]).logits).copy() for h in (one, other))
    assert np.array_equal(a, b)
    llama.close(one), llama.close(other)


@pytest.mark.parametrize("device", DEVICES)
def test_rows_of_a_batch_are_chained_together(device: str, folders: dict[str, Path]) -> None:
    model = draft_on(folders["llama"], device)
    pasts, news = [IDS[:90], IDS[5:10], IDS[100:230]], [IDS[90:91], IDS[10:14], IDS[230:232]]
    want = []
    for past, new in zip(pasts, news, strict=True):
        handle = read(model, past)
        want.append(stepwise(model, handle, new, 3)[0])
        model.close(handle)
    idle = read(model, IDS[:50])
    handles = [read(model, past) for past in pasts]
    rows = [Row(h, Block.chain(new)) for h, new in zip(handles, news, strict=True)]
    assert model.chain.draft(rows, 3).tokens.tolist() == want
    # The slot between that was not asked keeps its text.
    assert stepwise(model, idle, [7], 4) == stepwise(model, read(model, IDS[:50]), [7], 4)


def test_ids_of_a_cut_head_and_a_narrower_target(folders: dict[str, Path]) -> None:
    keep = (3, 7, 100, 200, 31, 32, 33, 90)
    cut = draft_on(folders["llama"], head_tokens=keep)
    handle = read(cut, IDS[:20])
    found = cut.chain.draft([Row(handle, Block.chain([5]))], 4).tokens[0].tolist()
    handle, new, want = read(cut, IDS[:20]), 5, []
    for _ in range(4):
        logits = to_host(cut.step([Row(handle, Block.chain([new]))]).logits)[0]
        cut.commit(handle, [0])
        want.append(new := keep[int(logits.argmax())])
    assert found == want and {*found} <= {*keep}
    model = draft_on(folders["llama"])
    want, sure = stepwise(model, read(model, IDS[:20]), [5], 6, vocab=40)
    chains = model.chain.draft([Row(read(model, IDS[:20]), Block.chain([5]))], 6, vocab=40)
    assert chains.tokens.tolist() == [want] and np.allclose(chains.confidences, [sure], atol=1e-5)


def test_a_chain_is_one_call_of_the_runner_and_one_graph(folders: dict[str, Path]) -> None:
    model = draft_on(folders["llama"], "gaudi-emulated")  # whose stand-in fails on a host that waits inside
    model.open(200)
    handle = read(model, IDS[:50])
    steps = model.passes.runner.num_graphs
    for new in (IDS[50:51], IDS[51:52], IDS[52:54]):
        model.chain.draft([Row(handle, Block.chain(new))], DEPTH)
        model.commit(handle, range(len(new)))
    assert model.chain.runner.num_graphs == 1 and model.passes.runner.num_graphs == steps
    model.open(256), model.open(256)  # the cache is another
    assert model.chain.runner.num_graphs == 0


def test_limits(llama: Any, folders: dict[str, Path]) -> None:
    handle = read(llama, IDS[:240])
    for row, depth in (
        (TokenTree((5, 6), (-1, -1)).as_block(), 2),
        (Block.chain([5]), 0),
        (Block.chain([5] * 65), 2),
    ):
        with pytest.raises(ValueError, match="chains of up to 64 tokens"):
            llama.chain.draft([Row(handle, row)], depth)
    assert llama.chain.draft([Row(handle, Block.chain([5, 6]))], 16) is None  # it would pass the context
    assert handle.length == 240 and not len(handle.pending)
    chains = llama.chain.draft([Row(handle, Block.chain([5, 6]))], 15)  # its last token needs no room
    assert chains.tokens.shape == (1, 15) and chains.seconds > 0
    llama.close(handle)
    for model in (
        draft_on(folders["llama"], role="target", exact=False),
        draft_on(folders["llama"], exit_layer=1),
    ):
        assert model.chain is None
