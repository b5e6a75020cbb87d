"""Long contexts up to the limit, across whatever growth, and the limit itself."""

from __future__ import annotations

import pytest

from specport.conformance.steps import Array, Probe
from specport.core.engine import Engine
from specport.core.policies.first_proposal import FirstProposal
from specport.core.policies.length_rules import (
    Fixed,
)
from specport.core.ports import Block, CacheHandle, Model, Row
from specport.core.sampling.params import SamplingParams
from specport.core.sequence import Generation
from specport.core.tree import TokenTree
from specport.drafters.retrieval.ngram import NgramDrafter

CHAIN = Block.chain


def test_long_contexts_do_not_depend_on_how_they_grew(model: Model, probe: Probe, ids: list[int]) -> None:
    limit = model.max_context
    reserved, grown, other = model.open(limit), model.open(), model.open()
    probe.fill(reserved, ids[: limit - 8])
    probe.fill(other, ids[:70])
    probe.fill(grown, ids[: limit - 8], chunk=61)
    end = ids[limit - 8 :]
    probe.check(probe.feed(grown, [end[:1], end[1:3], end[3:]]), probe.feed(reserved, [end]))
    assert reserved.length == grown.length == limit
    # A neighbour that was there while the cache grew, and one that goes back in its long text.
    fresh = model.open()
    probe.fill(fresh, ids[:70])
    model.truncate(grown, 70)
    expected = probe.feed(fresh, [ids[70:80]])
    probe.check(probe.feed(other, [ids[70:80]]), expected)
    probe.check(probe.feed(grown, [ids[70:80]]), expected)
    for handle in (reserved, grown, other, fresh):
        model.close(handle)


def test_a_full_context_is_said_before_anything_changes(
    model: Model, probe: Probe, handle: CacheHandle, ids: list[int]
) -> None:
    limit = model.max_context
    probe.fill(handle, ids[: limit - 1])
    expected = probe.next_logits(handle, ids[-1])
    assert refusals(model, Row(handle, CHAIN([5, 6]))) == {0: "context"}
    assert handle.length == limit - 1
    probe.check(probe.feed(handle, [ids[-1:]]), expected[None])
    assert handle.length == limit
    assert refusals(model, Row(handle, CHAIN([5]))) == {0: "context"}
    model.truncate(handle, limit - 1)
    probe.check(probe.feed(handle, [ids[-1:]]), expected[None])


def refusals(model: Model, row: Row) -> dict[int, str]:
    """Step one row that does not fit; return the answer, which owns no logits."""
    output = model.step([row])
    assert tuple(output.offsets) == (0, 0) and output.logits.shape == (0, model.vocab_size)
    return {**output.refused}


@pytest.mark.needs("batch")
@pytest.mark.parametrize("full", [0, 1, 2])
def test_a_full_row_leaves_its_neighbours_alone(
    model: Model, probe: Probe, ids: list[int], whole: Array, full: int
) -> None:
    """The full row's answer is a refusal; its neighbours' are the logits that they get without it."""
    limit = model.max_context
    handles = [probe.opened(ids[: limit - 1] if i == full else ids[: 10 + i]) for i in range(3)]
    expected = probe.next_logits(handles[full], ids[-1])
    rows = [Row(h, CHAIN([5, 6] if i == full else ids[10 + i : 14])) for i, h in enumerate(handles)]
    output = model.step(rows)
    assert dict(output.refused) == {full: "context"}
    for i, (handle, logits) in enumerate(zip(handles, probe.split(output), strict=True)):
        if i == full:
            assert handle.length == limit - 1 and not len(logits)
            continue
        probe.check(logits, whole[10 + i : 14])
        model.commit(handle, range(len(logits)))
        probe.check(probe.feed(handle, [ids[14:17]]), whole[14:17])
    probe.check(probe.feed(handles[full], [ids[-1:]]), expected[None])
    for handle in handles:
        model.close(handle)


@pytest.mark.needs("tree")
def test_the_limit_counts_depth_not_nodes(
    model: Model, probe: Probe, handle: CacheHandle, ids: list[int]
) -> None:
    """A tree at the limit: its paths fit, so it must be taken."""
    probe.fill(handle, ids[: model.max_context - 2])
    probe.step(Row(handle, TokenTree((ids[-2], 5, 6, 7), (-1, 0, 0, 0)).as_block()))
    model.commit(handle, [0, 2])
    assert handle.length == model.max_context
    model.truncate(handle, model.max_context - 1)
    assert refusals(model, Row(handle, TokenTree((ids[-1], 5, 6), (-1, 0, 0)).as_block())) == {0: "context"}


@pytest.mark.needs("exact")
def test_drafting_up_to_the_limit(model: Model, ids: list[int]) -> None:
    """The engine plans within the room that is left: the text reaches the limit with and without drafts."""
    left = 20
    prompt = ids[: model.max_context - left]
    texts = []
    for policy in (None, FirstProposal([NgramDrafter()], lambda: Fixed(6), tree=model.capabilities.tree)):
        generation = Generation(prompt[:], SamplingParams(), left + 1)
        for _ in Engine(model, policy).run([generation]):
            pass
        assert generation.finish_reason == "length"
        texts.append(generation.tokens)
    assert texts[0] == texts[1]
    assert len(texts[0]) == model.max_context + 1  # the last token needs no place in the cache


def test_a_text_ends_at_the_limit(model: Model, ids: list[int]) -> None:
    """One sequence that has all there is ends; one beside it that needs no more goes on."""
    full = Generation(ids[: model.max_context - 3], SamplingParams(), 40)
    short = Generation(ids[:9], SamplingParams(), 12)
    for _ in Engine(model).run([full, short]):
        pass
    assert (full.finish_reason, full.num_output_tokens) == ("length", 4)
    assert (short.finish_reason, short.num_output_tokens) == ("length", 12)
