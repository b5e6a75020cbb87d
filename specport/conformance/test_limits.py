"""Long contexts up to the limit, across whatever growth, and the limit itself."""

from __future__ import annotations

import pytest

from specport.conformance.steps import Probe
from specport.core.engine import Engine, Generation
from specport.core.planning.policies import Fixed
from specport.core.ports import CacheHandle, Model, Row
from specport.core.sampling.sampler import SamplingParams
from specport.core.tree import TokenTree
from specport.drafters.retrieval.ngram import NgramDrafter
from specport.errors import ContextFull

CHAIN = TokenTree.chain


def fill(model: Model, handle: CacheHandle, ids: list[int], length: int, chunk: int = 256) -> None:
    while handle.length < length:
        tokens = ids[handle.length : min(handle.length + chunk, length)]
        model.step([Row(handle, CHAIN(tokens), logits="last")])
        model.commit(handle, range(len(tokens)))


def test_long_contexts_do_not_depend_on_how_they_grew(model: Model, probe: Probe, ids: list[int]) -> None:
    limit = model.max_context
    reserved, grown, other = model.open(limit), model.open(), model.open()
    fill(model, reserved, ids, limit - 8)
    fill(model, other, ids, 70)
    fill(model, grown, ids, limit - 8, chunk=61)
    end = ids[limit - 8 :]
    probe.check(probe.feed(grown, [end[:1], end[1:3], end[3:]]), probe.feed(reserved, [end]))
    assert reserved.length == grown.length == limit
    # A neighbour that was there while the cache grew, and one that goes back in its long text.
    fresh = model.open()
    fill(model, fresh, ids, 70)
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
    fill(model, handle, ids, limit - 1)
    expected = probe.next_logits(handle, ids[-1])
    with pytest.raises(ContextFull):
        model.step([Row(handle, CHAIN([5, 6]))])
    assert handle.length == limit - 1
    probe.check(probe.feed(handle, [ids[-1:]]), expected[None])
    assert handle.length == limit
    with pytest.raises(ContextFull):
        model.step([Row(handle, CHAIN([5]))])
    model.truncate(handle, limit - 1)
    probe.check(probe.feed(handle, [ids[-1:]]), expected[None])


@pytest.mark.needs("batch")
def test_a_full_row_leaves_its_neighbours_alone(
    model: Model, probe: Probe, handle: CacheHandle, ids: list[int]
) -> None:
    limit = model.max_context
    fill(model, handle, ids, limit - 1)
    other = model.open()
    probe.feed(other, [ids[:10]])
    expected = probe.next_logits(other, ids[10])
    with pytest.raises(ContextFull):
        model.step([Row(other, CHAIN(ids[10:12])), Row(handle, CHAIN([5, 6]))])
    assert (other.length, handle.length) == (10, limit - 1)
    probe.check(probe.feed(other, [ids[10:11]]), expected[None])
    model.close(other)


@pytest.mark.needs("tree")
def test_the_limit_counts_depth_not_nodes(model: Model, handle: CacheHandle, ids: list[int]) -> None:
    """A tree at the limit: its paths fit, so it must be taken."""
    fill(model, handle, ids, model.max_context - 2)
    model.step([Row(handle, TokenTree((ids[-2], 5, 6, 7), (-1, 0, 0, 0)))])
    model.commit(handle, [0, 2])
    assert handle.length == model.max_context
    model.truncate(handle, model.max_context - 1)
    with pytest.raises(ContextFull):
        model.step([Row(handle, TokenTree((ids[-1], 5, 6), (-1, 0, 0)))])


@pytest.mark.needs("exact")
def test_drafting_up_to_the_limit(model: Model, ids: list[int]) -> None:
    """The engine plans within the room that is left: the text reaches the limit with and without drafts."""
    room = 20
    texts = []
    for drafter in (None, NgramDrafter()):
        engine = Engine(model, drafter)
        prompt = ids[: model.max_context - room]
        generation = Generation(prompt[:], engine.open(), SamplingParams(), Fixed(6), room + 1)
        for _ in engine.run([generation]):
            pass
        engine.close(generation.handle)
        texts.append(generation.tokens)
    assert texts[0] == texts[1]
    assert len(texts[0]) == model.max_context + 1  # the last token needs no place in the cache
