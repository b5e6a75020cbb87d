"""Early exit: what a step gives does not depend on what the model's first layers drafted before it."""

from __future__ import annotations

import json
from typing import cast

import pytest

from specport.conformance.pair import Pair
from specport.conformance.steps import Array, Probe, host
from specport.core.engine import Engine, Generation
from specport.core.model_kinds import EarlyExitModel
from specport.core.planning.policies import Fixed
from specport.core.ports import CacheHandle, Row
from specport.core.sampling.sampler import SamplingParams
from specport.core.tree import TokenTree
from specport.drafters.model.drafter import EarlyExitDrafter
from specport.errors import SpecportError
from specport.runtime.registry import LoadOptions

PAST = 30


@pytest.fixture(scope="module")
def early(pair: Pair) -> EarlyExitModel:
    """The target with an exit in its middle; skips where the device has none."""
    config = json.loads((pair.files.folder / "config.json").read_text(encoding="utf-8"))
    options = LoadOptions(
        pair.loader.profile,
        exact=pair.target.model.capabilities.exact,
        exit_layer=max(1, int(config.get("num_hidden_layers", 2)) // 2),
        max_context=pair.target.model.max_context,
    )
    try:
        model = pair.loader.backend.load(pair.files, options).model
    except SpecportError as error:
        pytest.skip(f"the device has no early exit: {error}")
    if model.capabilities.exit_layer != options.exit_layer:
        pytest.skip("the device has no capability 'exit_layer'")
    return cast(EarlyExitModel, model)


@pytest.fixture(scope="module")
def undrafted(early: EarlyExitModel, ids: list[int]) -> Array:
    """Logits of the first tokens in one step."""
    handle = early.open()
    logits = Probe(early).feed(handle, [ids[:60]])
    early.close(handle)
    return logits


def read(model: EarlyExitModel, ids: list[int]) -> CacheHandle:
    handle = model.open()
    Probe(model).feed(handle, [ids[:PAST]])
    return handle


@pytest.mark.parametrize("wrong", [None, 0, 1, 3], ids=str)
@pytest.mark.parametrize("chunks", [[1], [1, 1, 1, 1], [3, 2], [6]], ids=str)
def test_a_step_behind_a_draft(
    early: EarlyExitModel, ids: list[int], undrafted: Array, chunks: list[int], wrong: int | None
) -> None:
    """Right and wrong tokens, fewer and more than the step brings."""
    probe, handle = Probe(early), read(early, ids)
    guessed = [t + 1 if i == wrong else t for i, t in enumerate(ids[PAST : PAST + 6])]
    start = 0
    for count in chunks:
        output = early.draft([Row(handle, TokenTree.chain(guessed[start : start + count]))])
        assert host(output.logits).shape == (count, early.vocab_size)
        start += count
    assert handle.length == PAST  # nothing is committed
    (logits,) = probe.step(Row(handle, TokenTree.chain(ids[PAST : PAST + 5])))
    probe.check(logits, undrafted[PAST : PAST + 5])
    early.commit(handle, range(3))
    (logits,) = probe.step(Row(handle, TokenTree.chain(ids[PAST + 3 : PAST + 8])))
    probe.check(logits, undrafted[PAST + 3 : PAST + 8])
    early.close(handle)


def test_a_draft_is_forgotten(early: EarlyExitModel, ids: list[int], undrafted: Array) -> None:
    probe, handle = Probe(early), read(early, ids)
    early.draft([Row(handle, TokenTree.chain(ids[PAST : PAST + 3]))])
    early.truncate(handle, PAST - 10)
    (logits,) = probe.step(Row(handle, TokenTree.chain(ids[PAST - 10 : PAST])))
    probe.check(logits, undrafted[PAST - 10 : PAST])
    early.close(handle)


def test_drafts_are_chains(early: EarlyExitModel, ids: list[int]) -> None:
    handle = read(early, ids)
    with pytest.raises(ValueError):  # noqa: PT011  (each backend says it in its own words)
        early.draft([Row(handle, TokenTree((5, 6, 7), (-1, 0, 0)))])
    early.close(handle)


def test_rows_have_their_own_overlap(early: EarlyExitModel, ids: list[int], undrafted: Array) -> None:
    if not early.capabilities.batch:
        pytest.skip("the device has no capability 'batch'")
    probe, handles = Probe(early), [read(early, ids) for _ in range(3)]
    drafted = zip(handles[:2], (3, 1), strict=True)
    early.draft([Row(h, TokenTree.chain(ids[PAST : PAST + n])) for h, n in drafted])
    rows = [Row(h, TokenTree.chain(ids[PAST : PAST + n])) for h, n in zip(handles, (4, 6, 1), strict=True)]
    for logits, n in zip(probe.step(*rows), (4, 6, 1), strict=True):
        probe.check(logits, undrafted[PAST : PAST + n])
    for handle in handles:
        early.close(handle)


def test_the_text_is_the_plain_text(early: EarlyExitModel, ids: list[int]) -> None:
    if not early.capabilities.exact:
        pytest.skip("the device has no capability 'exact'")
    texts = []
    for drafter in (None, EarlyExitDrafter(early)):
        engine = Engine(early, drafter)
        generations = [
            Generation(ids[a:b], engine.open(), SamplingParams(), Fixed(4), 40) for a, b in ((0, 9), (20, 90))
        ]
        for generation in generations:
            for _ in engine.run([generation]):
                pass
            engine.close(generation.handle)
        texts.append([generation.tokens for generation in generations])
    assert texts[0] == texts[1]
    assert sum(generation.metrics.num_draft_tokens for generation in generations) > 0
