"""Blocks that outlive their sequence: others that begin with them go on as if they had read the tokens."""

from __future__ import annotations

import numpy as np
import pytest

from specport.conformance.steps import Probe
from specport.core.engine import Engine
from specport.core.ports import CacheHandle, Model, PrefixBlocks
from specport.core.prefix_cache import PrefixCache
from specport.core.sampling.params import SamplingParams
from specport.core.sequence import Generation

NUM_BLOCKS, NEW = 3, 40


def kept(model: Model) -> PrefixBlocks:
    if model.prefix_blocks is None:
        pytest.skip("the device keeps no blocks (Model.prefix_blocks)")
    return model.prefix_blocks


def read(probe: Probe, blocks: PrefixBlocks, ids: list[int]) -> tuple[CacheHandle, list[object]]:
    """Return a sequence of a few blocks and some tokens, and its blocks, kept."""
    handle = probe.opened(ids[: NUM_BLOCKS * blocks.size + 5])
    return handle, [blocks.keep(handle, i) for i in range(NUM_BLOCKS)]


def check(probe: Probe, handle: CacheHandle, tokens: list[int], rest: list[int]) -> None:
    """Check that a sequence holds `tokens`, by the logits of what follows, read in two ways."""
    assert handle.length == len(tokens)
    alone = probe.opened(tokens)
    expected = probe.feed(alone, [rest])
    probe.model.close(alone)
    probe.check(probe.feed(handle, [rest[:1], rest[1:7], rest[7:]]), expected)


@pytest.mark.parametrize("count", [1, NUM_BLOCKS])
def test_a_sequence_begins_with_blocks_of_one_that_has_ended(
    any_probe: Probe, ids: list[int], count: int
) -> None:
    model, blocks = any_probe.model, kept(any_probe.model)
    assert blocks.size > 0 and blocks.most > NUM_BLOCKS
    origin, found = read(any_probe, blocks, ids)
    model.truncate(origin, 3)  # what it writes now lies where the blocks were
    any_probe.fill(origin, ids[600 : 600 + NUM_BLOCKS * blocks.size])
    model.close(origin)
    stranger = any_probe.opened(ids[400:550])
    begun = blocks.open(found[:count], count * blocks.size + NEW)
    check(any_probe, begun, ids[: count * blocks.size], ids[200 : 200 + NEW])
    for handle in (begun, stranger):
        model.close(handle)
    for block in found:
        blocks.drop(block)


def test_two_sequences_and_their_origin_write_behind_the_same_blocks(
    any_probe: Probe, ids: list[int]
) -> None:
    model, blocks = any_probe.model, kept(any_probe.model)
    origin, found = read(any_probe, blocks, ids)
    text = ids[: NUM_BLOCKS * blocks.size]
    first, second = blocks.open(found, 0), blocks.open(found, 0)
    for block in found:
        blocks.drop(block)
    check(any_probe, first, text, ids[200 : 200 + NEW])
    check(any_probe, second, text, ids[300 : 300 + NEW])
    check(any_probe, origin, ids[: len(text) + 5], ids[400 : 400 + NEW])
    # Back into the common blocks, over which it writes: nobody else sees it.
    model.truncate(first, blocks.size + 3)
    check(any_probe, first, ids[: blocks.size + 3], ids[500 : 500 + NEW])
    check(any_probe, second, [*text, *ids[300 : 300 + NEW]], ids[200 : 200 + NEW])
    for handle in (origin, first, second):
        model.close(handle)


def test_content_that_was_dumped_is_loaded_again(any_probe: Probe, ids: list[int]) -> None:
    model, blocks = any_probe.model, kept(any_probe.model)
    origin, found = read(any_probe, blocks, ids)
    dumped = [blocks.dump(block).copy() for block in found]
    assert all(content.dtype == np.uint8 and content.ndim == 1 for content in dumped)
    for block in found:
        blocks.drop(block)
    any_probe.model.close(origin)
    stranger = any_probe.opened(ids[400:600])
    loaded = [blocks.load(content) for content in dumped]
    for content, block in zip(dumped, loaded, strict=True):
        np.testing.assert_array_equal(blocks.dump(block), content)
    begun = blocks.open(loaded, NUM_BLOCKS * blocks.size + NEW)
    check(any_probe, begun, ids[: NUM_BLOCKS * blocks.size], ids[200 : 200 + NEW])
    for block in loaded:
        blocks.drop(block)
    for handle in (begun, stranger):
        model.close(handle)


def test_content_of_another_size_is_refused(any_probe: Probe, ids: list[int]) -> None:
    blocks = kept(any_probe.model)
    origin, found = read(any_probe, blocks, ids)
    content = blocks.dump(found[0])
    for wrong in (content[:-1], np.concatenate([content, content]), content[:0]):
        with pytest.raises(ValueError, match=r"\w"):
            blocks.load(wrong)
    for block in found:
        blocks.drop(block)
    any_probe.model.close(origin)


def test_dropped_blocks_give_their_room_back(model: Model, probe: Probe, ids: list[int]) -> None:
    blocks, before, unused = kept(model), model.room(), model.cache_usage
    origin, found = read(probe, blocks, ids)
    model.close(origin)
    assert model.cache_usage == unused  # what is only kept does not count
    freed = [blocks.drop(block) for block in found]
    assert model.room() == before
    assert all(freed) == blocks.shared


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(temperature=0.8, seed=3)])
def test_texts_with_a_prefix_cache_are_those_without(
    model: Model, ids: list[int], params: SamplingParams
) -> None:
    """Prompts with one beginning, one of them twice."""
    if not model.capabilities.exact:
        pytest.skip("the device has no exact mode")
    blocks = kept(model)
    system = ids[: 2 * blocks.size + 7]
    prompts = [[*system, *ids[300:310]], [*system, *ids[320:325]], [*system, *ids[300:310]]]
    cache = PrefixCache.of(model)
    assert cache is not None
    texts, cached = [], []
    for prefixes in (None, cache):
        engine = Engine(model, prefixes=prefixes)
        for prompt in prompts:
            generation = Generation([*prompt], params, 24)
            for _ in engine.run([generation]):
                pass
            texts.append(generation.tokens)
            cached.append(generation.metrics.num_cached_tokens)
    assert texts[:3] == texts[3:]
    assert cached == [0, 0, 0, 0, 2 * blocks.size, (len(prompts[2]) - 1) // blocks.size * blocks.size]
    cache.clear()
