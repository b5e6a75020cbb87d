"""Early exit: what a step gives does not depend on what the model's first layers drafted before it."""

from __future__ import annotations

import numpy as np
import pytest

from specport.conformance.pair import Pair
from specport.conformance.steps import Array, Probe, host
from specport.core.engine import Engine
from specport.core.policies.first_proposal import FirstProposal
from specport.core.policies.length_rules import (
    Fixed,
)
from specport.core.ports import Block, CacheHandle, Model, Row, StepOutput
from specport.core.sampling.params import SamplingParams
from specport.core.sequence import Generation
from specport.core.tree import TokenTree
from specport.drafters.model.drafter import EarlyExitDrafter
from specport.errors import SpecportError

PAST = 30


@pytest.fixture(scope="module")
def early(pair: Pair) -> Model:
    """The target with an exit in its middle; skips where the device has none."""
    layer = max(1, pair.num_layers // 2)
    try:
        model = pair.variant(exit_layer=layer)
    except SpecportError as error:
        pytest.skip(f"the device has no early exit: {error}")
    if model.early_exit is None:
        pytest.skip("the device has no early exit")
    assert model.early_exit.layer == layer
    return model


def draft(model: Model, *rows: Row) -> StepOutput:
    """Draft at the exit. Fails where a row is refused."""
    assert model.early_exit is not None
    output = model.early_exit.draft(rows)
    assert not output.refused
    return output


@pytest.fixture(scope="module")
def undrafted(early: Model, ids: list[int]) -> Array:
    """Logits of the first tokens in one step."""
    handle = early.open()
    logits = Probe(early).feed(handle, [ids[:60]])
    early.close(handle)
    return logits


def read(model: Model, ids: list[int]) -> CacheHandle:
    handle = model.open()
    Probe(model).feed(handle, [ids[:PAST]])
    return handle


@pytest.mark.parametrize("wrong", [None, 0, 1, 3], ids=str)
@pytest.mark.parametrize("chunks", [[1], [1, 1, 1, 1], [3, 2], [6]], ids=str)
def test_a_step_behind_a_draft(
    early: Model, ids: list[int], undrafted: Array, chunks: list[int], wrong: int | None
) -> None:
    """Right and wrong tokens, fewer and more than the step brings."""
    probe, handle = Probe(early), read(early, ids)
    guessed = [t + 1 if i == wrong else t for i, t in enumerate(ids[PAST : PAST + 6])]
    start = 0
    for count in chunks:
        output = draft(early, Row(handle, Block.chain(guessed[start : start + count])))
        assert host(output.logits).shape == (count, early.vocab_size)
        start += count
    assert handle.length == PAST  # nothing is committed
    (logits,) = probe.step(Row(handle, Block.chain(ids[PAST : PAST + 5])))
    probe.check(logits, undrafted[PAST : PAST + 5])
    early.commit(handle, range(3))
    (logits,) = probe.step(Row(handle, Block.chain(ids[PAST + 3 : PAST + 8])))
    probe.check(logits, undrafted[PAST + 3 : PAST + 8])
    early.close(handle)


def test_a_draft_is_forgotten(early: Model, ids: list[int], undrafted: Array) -> None:
    probe, handle = Probe(early), read(early, ids)
    draft(early, Row(handle, Block.chain(ids[PAST : PAST + 3])))
    early.truncate(handle, PAST - 10)
    (logits,) = probe.step(Row(handle, Block.chain(ids[PAST - 10 : PAST])))
    probe.check(logits, undrafted[PAST - 10 : PAST])
    early.close(handle)


def test_drafts_are_chains(early: Model, ids: list[int]) -> None:
    handle = read(early, ids)
    with pytest.raises(ValueError):  # noqa: PT011  (each backend says it in its own words)
        draft(early, Row(handle, TokenTree((5, 6, 7), (-1, 0, 0)).as_block()))
    early.close(handle)


def test_rows_have_their_own_overlap(early: Model, ids: list[int], undrafted: Array) -> None:
    if not early.capabilities.batch:
        pytest.skip("the device has no capability 'batch'")
    probe, handles = Probe(early), [read(early, ids) for _ in range(3)]
    drafted = zip(handles[:2], (3, 1), strict=True)
    draft(early, *(Row(h, Block.chain(ids[PAST : PAST + n])) for h, n in drafted))
    rows = [Row(h, Block.chain(ids[PAST : PAST + n])) for h, n in zip(handles, (4, 6, 1), strict=True)]
    for logits, n in zip(probe.step(*rows), (4, 6, 1), strict=True):
        probe.check(logits, undrafted[PAST : PAST + n])
    for handle in handles:
        early.close(handle)


def test_the_text_is_the_plain_text(early: Model, ids: list[int]) -> None:
    if not early.capabilities.exact:
        pytest.skip("the device has no capability 'exact'")
    texts = []
    for policy in (None, FirstProposal([EarlyExitDrafter(early)], lambda: Fixed(4))):
        engine = Engine(early, policy)
        generations = [Generation(ids[a:b], SamplingParams(), 40) for a, b in ((0, 9), (20, 90))]
        for generation in generations:
            for _ in engine.run([generation]):
                pass
        texts.append([generation.tokens for generation in generations])
    assert texts[0] == texts[1]
    assert sum(generation.metrics.num_draft_tokens for generation in generations) > 0


def test_a_draft_that_does_not_fit_is_refused(early: Model, ids: list[int]) -> None:
    """As a row of a step: the answer is a refusal, and what had been drafted before is as it was."""
    assert early.early_exit is not None
    probe, limit = Probe(early), early.max_context
    handle = probe.opened(ids[: limit - 2])
    first = host(draft(early, Row(handle, Block.chain(ids[limit - 2 : limit - 1]))).logits)
    output = early.early_exit.draft([Row(handle, Block.chain([5, 6]))])
    assert dict(output.refused) == {0: "context"} and tuple(output.offsets) == (0, 0)
    second = host(draft(early, Row(handle, Block.chain(ids[limit - 1 :]))).logits)
    early.truncate(handle, limit - 2)
    probe.check(
        host(draft(early, Row(handle, Block.chain(ids[limit - 2 :]))).logits), np.concatenate([first, second])
    )
    early.close(handle)
