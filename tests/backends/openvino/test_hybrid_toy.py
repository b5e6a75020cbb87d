"""Hybrid models on a stand-in for the graph: what is written where, and how much is computed again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from specport.conformance.steps import Probe
from specport.core.block import Block
from specport.core.ports import CacheHandle, Row
from specport.core.tree import TokenTree
from specport.errors import ContextFull

pytest.importorskip("openvino")

from specport.backends.openvino.paged import hybrid
from specport.backends.openvino.paged.hybrid import HybridModel
from support.laws.hybrid_texts import Texts
from support.toys.paged_toy import ToyRequest

IDS = [int(i) for i in np.random.default_rng(2).integers(3, 60, 500)]
TREE = TokenTree((5, 6, 7, 8, 9), (-1, 0, 0, 2, 2)).as_block()


def toy(exact: bool = True, **options: Any) -> tuple[ToyRequest, HybridModel]:
    request: Any = ToyRequest()
    return request, HybridModel(request, max_context=512, exact=exact, **options)


@pytest.mark.parametrize("num_states", [1024, 12, 9])
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("widest", [0, 5])
@pytest.mark.parametrize("seed", range(4))
def test_random_use(
    seed: int, widest: int, exact: bool, num_states: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """num_states: with few of them, some steps keep no state, and some rows are refused."""
    monkeypatch.setattr(hybrid, "_MOST_STATES", num_states)
    (_, model), (_, plain) = toy(exact), toy(exact)
    model.widest = widest
    texts = Texts(model, plain, seed)
    for number in range(80):
        texts.step()
        texts.change()
        texts.check(number % 3)
    for i, handle in enumerate(texts.handles):
        texts.check(i)
        model.close(handle)
        model.close(handle)
    assert model.states.num_used == model.cache.num_used_blocks == 0
    assert texts.num_refused == 0 or num_states < 1024


def text(model: HybridModel, length: int) -> CacheHandle:
    return Probe(model).opened(IDS[:length])


@pytest.mark.parametrize("goes_back", [True, False])
def test_how_much_is_computed_again(goes_back: bool) -> None:
    """Nothing behind a verify step, whatever is kept; about what is cut where a text goes back."""
    request, model = toy(goes_back=goes_back)
    handle = text(model, 40)
    for kept in (1, 3, 8):
        model.step([Row(handle, Block.chain(IDS[:8]))])
        model.commit(handle, range(kept))
    before = request.num_calls
    model.step([Row(handle, Block.chain([5, 6]))])
    assert request.num_calls == before + 1
    model.commit(handle, [0])
    for _ in range(20):  # token by token, as a draft does
        model.step([Row(handle, Block.chain([9]))])
        model.commit(handle, [0])
    model.truncate(handle, handle.length - 13)
    before, tokens = request.num_calls, request.num_tokens
    model.step([Row(handle, Block.chain([5, 6]))])
    assert request.num_calls == before + (1 if goes_back else 2)
    assert request.num_tokens - tokens <= 2 + 16


def test_a_tree_writes_a_state_for_each_node() -> None:
    _, model = toy()
    handle = text(model, 20)
    used = model.states.num_used
    for path in ([0], [0, 1], [0, 2, 3], [0, 2, 4]):
        model.step([Row(handle, TREE)])
        assert model.states.num_used == used + len(TREE)
        model.commit(handle, path)
        model.truncate(handle, 20)
        assert model.states.num_used == used


def test_a_step_keeps_the_states_that_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of its first tokens; one block stays for each sequence and one for another."""
    monkeypatch.setattr(hybrid, "_MOST_STATES", 10)
    request, model = toy()
    handle = text(model, 20)
    probe = Probe(model)
    probe.step(Row(handle, Block.chain(IDS[20:30])))
    assert model.states.num_used == 1 + 5  # of 8: the text's own, one for it, one for another
    model.commit(handle, range(7))
    before = request.num_tokens
    (found,) = probe.step(Row(handle, Block.chain(IDS[27:30])))
    assert request.num_tokens - before == 3 + 2  # the two tokens behind the last state that was kept
    fresh = probe.opened(IDS[:27])
    probe.check(found, probe.step(Row(fresh, Block.chain(IDS[27:30])))[0])


def test_seconds_of_what_is_computed_again_count() -> None:
    _, model = toy()
    handle = text(model, 40)
    model.truncate(handle, 20)
    assert model.step([Row(handle, Block.chain([5]))]).seconds == pytest.approx(0.002)
    assert model.step([Row(handle, Block.chain([5]))]).seconds == pytest.approx(0.001)


def failing(request: ToyRequest, model: HybridModel, act: Callable[[], Any]) -> None:
    """Let the runtime fail during an act: nothing may stay in use because of it."""
    used = model.states.num_used, model.cache.num_used_blocks
    real = ToyRequest.__call__

    def fail(self: ToyRequest, inputs: Any) -> float:
        raise RuntimeError("out of memory")

    ToyRequest.__call__ = fail  # type: ignore[method-assign]
    try:
        with pytest.raises(RuntimeError):
            act()
    finally:
        ToyRequest.__call__ = real  # type: ignore[method-assign]
    assert (model.states.num_used, model.cache.num_used_blocks) == used


@pytest.mark.parametrize("length", [64, 41])
def test_a_step_that_fails_leaves_nothing(length: int) -> None:
    """length: where the text was cut to; there is no state at 41."""
    request, model = toy()
    handle = text(model, 64)
    model.truncate(handle, length)
    failing(request, model, lambda: model.step([Row(handle, TREE), Row(model.open(), Block.chain([5]))]))
    probe = Probe(model)
    fresh = probe.opened(IDS[:length])
    probe.check(probe.next_logits(handle, 7), probe.next_logits(fresh, 7))


def test_shared_blocks_are_copied_before_they_are_computed_again() -> None:
    """A fork between two states writes again to tokens that its origin has: to copies."""
    _, model = toy()
    origin = text(model, 100)
    fork = model.fork(origin, 70)
    shared = [*origin.table]  # type: ignore[attr-defined]
    model.step([Row(fork, Block.chain([5]))])
    assert not {*fork.table} & {*shared}  # type: ignore[attr-defined]
    model.close(fork)
    assert [*origin.table] == shared  # type: ignore[attr-defined]


def test_sequences_without_a_state_have_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each text has one, and room for one more; so a cache of 10 takes 4 texts."""
    monkeypatch.setattr(hybrid, "_MOST_STATES", 10)
    _, model = toy()
    handles = []
    while model.room():
        handles.append(text(model, 20))
        assert len(handles) < 10
    assert len(handles) == 4
    with pytest.raises(ContextFull):
        model.open(1)
    for handle in handles:  # those that have one go on, with drafts and without
        assert not model.step([Row(handle, TREE)]).refused
        model.commit(handle, [0, 1])
    assert not model.step([Row(handle, Block.chain([5])) for handle in handles]).refused
    for handle in handles:
        model.commit(handle, [0])
    model.close(handles.pop())
    assert model.room()


def test_no_memory_for_states_is_no_room() -> None:
    _, model = toy(cache_bytes=8)
    assert model.room() == 0
