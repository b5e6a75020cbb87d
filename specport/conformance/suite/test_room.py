"""Room: how much a sequence may be given is told before, and a row for which there is none is refused alone.

Most of it runs on a target with a small cache (`bounded.py`). Only `room` tells what a cache holds, so the
tests compare it before and after: what grows once, the first time round, is no leak.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from specport.conformance.bounded import TOKENS
from specport.conformance.steps import Array, Probe
from specport.core.engine import Engine
from specport.core.ports import Block, CacheHandle, Model, Row
from specport.core.sampling.params import SamplingParams
from specport.core.sequence import Generation
from specport.core.tree import TokenTree
from specport.errors import ContextFull

TIMES = 12  # that something is done before its traces are looked for
TREE = TokenTree((5, 6, 7, 8, 9, 10, 11), (-1, 0, 0, 1, 1, 2, 2))


@pytest.fixture
def tight(small: Model) -> Probe:
    return Probe(small)


@pytest.fixture
def pair_of(tight: Probe, ids: list[int]) -> Iterator[tuple[CacheHandle, CacheHandle]]:
    """Two sequences of the small cache, of 40 and 20 tokens."""
    handles = tight.opened(ids[:40]), tight.opened(ids[:20])
    yield handles
    for handle in handles:
        tight.model.close(handle)


def over(model: Model, handle: CacheHandle, ids: list[int]) -> Row:
    """Return a row with one token more than there is room for; skips where only the context bounds it."""
    count = model.room(handle) + 1
    if handle.length + count > model.max_context:
        pytest.skip("a sequence's cache holds its whole context: nothing but the context refuses a row")
    return Row(handle, Block.chain(ids[handle.length : handle.length + count]), logits="last")


def leaves_nothing(model: Model, act: Callable[[], None], *handles: CacheHandle) -> None:
    """Check that doing something again and again takes no room away, for new sequences and for these."""
    act()
    before = [model.room(), *(model.room(handle) for handle in handles)]
    for _ in range(TIMES):
        act()
    assert [model.room(), *(model.room(handle) for handle in handles)] == before


def test_room_ends_with_the_context(model: Model, probe: Probe, ids: list[int]) -> None:
    limit = model.max_context
    assert 0 < model.room() <= limit
    unused = model.cache_usage
    handle = probe.opened(ids[:50])
    assert 0 < model.room(handle) <= limit - 50
    used = model.cache_usage
    assert (used is None) == (unused is None)
    assert used is None or unused is None or 0 <= unused < used <= 1
    probe.fill(handle, ids[50 : limit - 1])
    assert 0 <= model.room(handle) <= 1
    probe.fill(handle, ids[limit - 1 :])
    assert model.room(handle) == 0
    model.truncate(handle, limit - 7)
    assert model.room(handle) == 7
    model.close(handle)


@pytest.mark.parametrize("past", [0, 1, 31, 32, 40])
def test_a_sequence_can_be_given_what_it_has_room_for(
    tight: Probe, ids: list[int], whole: Array, past: int
) -> None:
    """All of it in one step, to the token; and the token behind it is refused."""
    model = tight.model
    handle = tight.opened(ids[:past])
    count = model.room(handle)
    assert count >= TOKENS - past
    tight.step(Row(handle, Block.chain(ids[past : past + count]), logits="none"))
    model.commit(handle, range(count))
    assert model.room(handle) == 0
    why = "context" if handle.length == model.max_context else "cache"
    assert dict(model.step([Row(handle, Block.chain([5]))]).refused) == {0: why}
    model.truncate(handle, 60)
    tight.check(tight.feed(handle, [ids[60:64]]), whole[60:64])
    model.close(handle)


def test_where_all_rows_are_refused_nothing_is_run(
    tight: Probe, pair_of: tuple[CacheHandle, CacheHandle], ids: list[int], whole: Array
) -> None:
    model, (one, _) = tight.model, pair_of
    output = model.step([over(model, one, ids)])
    assert dict(output.refused) == {0: "cache"}
    assert tuple(output.offsets) == (0, 0) and output.logits.shape == (0, model.vocab_size)
    assert one.length == 40
    tight.check(tight.feed(one, [ids[40:44]]), whole[40:44])


@pytest.mark.parametrize("place", [0, 1])
def test_a_refused_row_leaves_the_others_alone(
    tight: Probe, pair_of: tuple[CacheHandle, CacheHandle], ids: list[int], whole: Array, place: int
) -> None:
    """Whether it stands before or behind them; its own sequence goes on with fewer tokens."""
    model, (one, other) = tight.model, pair_of
    if not model.capabilities.batch:
        pytest.skip("the device has no capability 'batch'")
    rows = [Row(other, Block.chain(ids[20:25]))]
    rows.insert(place, over(model, one, ids))
    output = model.step(rows)
    assert dict(output.refused) == {place: "cache"}
    found = tight.split(output)
    assert (len(found[place]), one.length, other.length) == (0, 40, 20)
    tight.check(found[1 - place], whole[20:25])
    model.commit(other, range(5))
    tight.check(tight.feed(other, [ids[25:28]]), whole[25:28])
    tight.check(tight.feed(one, [ids[40:45]]), whole[40:45])


def test_refusals_of_both_kinds_in_one_step(
    tight: Probe, pair_of: tuple[CacheHandle, CacheHandle], ids: list[int], whole: Array
) -> None:
    model, (other, one) = tight.model, pair_of
    if not model.capabilities.batch:
        pytest.skip("the device has no capability 'batch'")
    far = Row(one, Block.chain([*ids, 5][: model.max_context - 19]), logits="none")
    output = model.step([far, over(model, other, ids), Row(third := model.open(), Block.chain(ids[:3]))])
    assert dict(output.refused) == {0: "context", 1: "cache"}
    tight.check(tight.split(output)[2], whole[:3])
    model.close(third)


def test_refused_rows_leave_nothing_behind(
    tight: Probe, pair_of: tuple[CacheHandle, CacheHandle], ids: list[int], whole: Array
) -> None:
    model, (one, other) = tight.model, pair_of
    row = over(model, one, ids)
    leaves_nothing(model, lambda: _refused(model, row), one, other)
    tight.check(tight.feed(one, [ids[40:44]]), whole[40:44])


def _refused(model: Model, row: Row) -> None:
    assert 0 in model.step([row]).refused


@pytest.mark.needs("tree")
@pytest.mark.parametrize("left", [0, 1, 3, 6, 20, 33, 40, 64, 70])
def test_trees_leave_nothing_behind(tight: Probe, ids: list[int], whole: Array, left: int) -> None:
    """With so many tokens of room, a tree of 7 nodes is taken or refused; then the room is what it was."""
    model = tight.model
    handle = tight.opened(ids[:20])
    tight.fill(handle, ids[20 : 20 + max(0, model.room(handle) - left)])
    length = handle.length

    def step() -> None:
        model.step([Row(handle, TREE.as_block())])
        model.truncate(handle, length)

    leaves_nothing(model, step, handle)
    model.truncate(handle, 20)
    tight.check(tight.feed(handle, [ids[20:24]]), whole[20:24])
    model.close(handle)


def test_opening_more_than_there_is_room_for(tight: Probe, ids: list[int]) -> None:
    """ContextFull, and nothing is taken; what is closed makes room again."""
    model = tight.model

    def fill_up() -> None:
        handles: list[CacheHandle] = []
        while model.room() >= TOKENS:
            handles.append(model.open(TOKENS))
        with pytest.raises(ContextFull):
            model.open(model.room() + 1)
        assert len(handles) > 1
        for handle in handles:
            model.close(handle)

    leaves_nothing(model, fill_up)
    assert model.room() >= TOKENS


def test_forks_leave_nothing_behind(
    tight: Probe, pair_of: tuple[CacheHandle, CacheHandle], ids: list[int]
) -> None:
    """Forks of forks that are written to, cut and closed in any order."""
    model, (one, _) = tight.model, pair_of

    def use() -> None:
        fork = model.fork(one, 35)
        tight.fill(fork, ids[100:110])
        model.truncate(fork, 10)
        tight.step(Row(fork, Block.chain(ids[:9])))
        model.close(fork)

    leaves_nothing(model, use, *pair_of)


def test_a_fork_for_which_there_is_no_room(
    tight: Probe, pair_of: tuple[CacheHandle, CacheHandle], ids: list[int], whole: Array
) -> None:
    """Forks that are written to fill the cache up; then there is an answer, and the first ones are whole."""
    model, (one, _) = tight.model, pair_of

    def fill_up() -> None:
        forks: list[CacheHandle] = []
        full = False
        while not full:
            assert len(forks) < 1000
            try:
                forks.append(model.fork(one, 37))
            except ContextFull:
                break
            rows = [Row(forks[-1], Block.chain(ids[37:77]), logits="none")]
            full = bool(model.step(rows).refused)
            model.commit(forks[-1], () if full else range(40))
        goes = forks[0] if len(forks) > 1 else one
        start = goes.length
        if model.room(goes):
            (logits,) = tight.step(Row(goes, Block.chain(ids[start : start + 1])))
            tight.check(logits, whole[start : start + 1])
        for fork in forks:
            model.close(fork)

    leaves_nothing(model, fill_up, *pair_of)
    tight.check(tight.feed(one, [ids[40:44]]), whole[40:44])


def test_more_texts_than_the_cache_holds(small: Model, ids: list[int]) -> None:
    """They wait for one another, give their place up and come back; none ends early, and nothing stays."""
    lengths = [30, 64, 10, 90, 33, 5, 60, 41]
    before: list[int] = []
    texts: list[list[list[int]]] = []
    for together in (False, True):
        done = [Generation(ids[n : 2 * n], SamplingParams(), 40) for n in lengths]
        for group in [done] if together else [[each] for each in done]:
            for _ in Engine(small).run(group):
                pass
        assert {(g.finish_reason, g.num_output_tokens) for g in done} == {("length", 40)}
        texts.append([g.tokens for g in done])
        before.append(small.room())
    assert small.room() >= TOKENS
    if small.capabilities.exact:
        assert texts[0] == texts[1]
