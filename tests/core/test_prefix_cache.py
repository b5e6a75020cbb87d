"""The prefix cache: texts begin with what earlier ones left, and are what they are without it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from support.generations import GREEDY, begin, output, run
from support.toys.toy_blocks import SIZE, ToyBlocks, keeping
from support.toys.toy_drafter import ToyDrafter
from support.toys.toy_model import ToyModel

from specport.core.engine import Engine
from specport.core.policies.first_proposal import FirstProposal
from specport.core.policies.length_rules import Fixed
from specport.core.ports import Needs, Policy
from specport.core.prefix_cache import PrefixCache
from specport.core.sampling.params import SamplingParams
from specport.core.sequence import KeptCache
from specport.drafters.model.drafter import ModelDrafter

SYSTEM = [int(i) for i in np.random.default_rng(3).integers(0, 11, 40)]
SAMPLED = SamplingParams(temperature=0.9, top_p=0.95, seed=5)
UNSEEDED = SamplingParams(temperature=0.9)


class Store:
    """A store in memory. `damage`: content that `get` gives in place of every block's."""

    def __init__(self) -> None:
        self.blocks: dict[bytes, NDArray[np.uint8]] = {}
        self.damage: NDArray[np.uint8] | None = None
        self.discarded: list[bytes] = []

    def has(self, name: bytes) -> bool:
        return name in self.blocks

    def get(self, name: bytes) -> NDArray[np.uint8] | None:
        return self.damage if self.damage is not None else self.blocks.get(name)

    def put(self, name: bytes, content: NDArray[np.uint8]) -> None:
        self.blocks[name] = content

    def touch(self, name: bytes) -> None: ...

    def discard(self, name: bytes) -> None:
        self.discarded.append(name)
        self.blocks.pop(name, None)

    def flush(self) -> None: ...


def engine_on(target: ToyModel, policy: Policy | None = None, store: Store | None = None) -> Engine:
    return Engine(target, policy, prefixes=PrefixCache.of(target, store))


def test_a_model_that_keeps_no_blocks_has_no_prefix_cache() -> None:
    assert PrefixCache.of(ToyModel()) is None


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("draft", ["none", "toy", "model"])
def test_the_second_text_reads_only_what_is_new(params: SamplingParams, draft: str) -> None:
    """Prompts of two users behind one system prompt, then the first one again."""

    def policy() -> Policy | None:
        if draft == "none":
            return None
        small = keeping(ToyModel(noise=0.4))
        drafter = (
            ToyDrafter(small) if draft == "toy" else ModelDrafter(small, 11, prefixes=PrefixCache.of(small))
        )
        return FirstProposal([drafter], lambda: Fixed(3, (2,)), tree=True)

    prompts = [[*SYSTEM, 1, 2], [*SYSTEM, 7], [*SYSTEM, 1, 2]]
    alone = [run(Engine(ToyModel(), policy()), begin(p, 20, params=params))[0] for p in prompts]
    target = keeping(ToyModel())
    engine = engine_on(target, policy())
    generations = [begin(p, 20, params=params) for p in prompts]
    assert [run(engine, g)[0] for g in generations] == alone
    cached = [g.metrics.num_cached_tokens for g in generations]
    assert cached == [0, len(SYSTEM), (len(prompts[2]) - 1) // SIZE * SIZE]
    assert max(target.widths[1:]) <= max(target.widths[0], 13)


def test_texts_that_run_at_once_share_what_the_first_has_read() -> None:
    target = keeping(ToyModel())
    engine = engine_on(target)
    first, second = begin([*SYSTEM, 1], 30), begin([*SYSTEM, 2], 5)
    engine.add(first)
    for _ in range(3):
        engine.step()
    assert run(engine, second) == [target.greedy([*SYSTEM, 2], 5)]
    assert not first.ended and second.metrics.num_cached_tokens == len(SYSTEM)
    first.cancel()
    engine.tidy()


def test_answers_are_kept_too_and_a_chat_whose_cache_was_freed_goes_on_with_blocks() -> None:
    target = keeping(ToyModel())
    engine, kept = engine_on(target), KeptCache()
    first = begin(SYSTEM, 20, kept=kept)
    run(engine, first)
    engine.release(kept)
    engine.tidy()
    assert kept.handle is None
    turn = begin([*first.tokens, 3, 3], 10, kept=KeptCache())
    assert run(engine, turn) == [target.greedy([*first.tokens, 3, 3], 10)]
    assert turn.metrics.num_cached_tokens == (len(first.tokens) - 1) // SIZE * SIZE


def test_of_a_kept_cache_and_blocks_the_longer_one_is_taken() -> None:
    target = keeping(ToyModel())
    engine, kept = engine_on(target), KeptCache()
    run(engine, begin([*SYSTEM[:8], 1, 1, 1], 5, kept=kept), begin([*SYSTEM, 1], 5))
    turn = begin([*SYSTEM, 2], 5, kept=kept)
    assert run(engine, turn) == [target.greedy([*SYSTEM, 2], 5)]
    assert turn.metrics.num_cached_tokens == len(SYSTEM)
    # One token more than full blocks: the kept cache has them all.
    again = begin([*turn.tokens, 1], 5, kept=kept)
    run(engine, again)
    assert again.metrics.num_cached_tokens == len(turn.tokens) - 1


def test_equal_blocks_behind_another_beginning_are_others() -> None:
    target = keeping(ToyModel())
    engine = engine_on(target)
    run(engine, begin(SYSTEM, 3))
    other = begin([*SYSTEM[SIZE:]], 10)
    assert run(engine, other) == [target.greedy(SYSTEM[SIZE:], 10)]
    assert other.metrics.num_cached_tokens == 0


def test_the_least_recently_used_goes_first_and_of_a_text_its_end() -> None:
    target = keeping(ToyModel(), most=10)
    engine = engine_on(target)
    a, b = [1] * 20, [2] * 20
    run(engine, begin(a, 1))
    run(engine, begin(b, 1))
    run(engine, begin([*a, 1], 1))  # used again
    run(engine, begin([3] * 12, 1))
    again, lost = begin([*a, 1], 1), begin([*b, 1], 1)
    run(engine, again)
    assert again.metrics.num_cached_tokens == 20
    run(engine, lost)
    assert 0 < lost.metrics.num_cached_tokens < 20
    assert isinstance(target.prefix_blocks, ToyBlocks) and target.prefix_blocks.num_kept == 10


@pytest.mark.parametrize("cache", [80, 120, 300])
@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "seeded"])
def test_in_a_full_cache_kept_blocks_go_first_and_texts_stay_as_they_are(
    cache: int, params: SamplingParams
) -> None:
    rng = np.random.default_rng(cache)
    prompts = [[*SYSTEM[: int(rng.integers(1, 40))], *rng.integers(0, 11, 6).tolist()] for _ in range(30)]

    def policy() -> Policy:
        return FirstProposal([ToyDrafter(ToyModel(noise=0.4))], lambda: Fixed(3, (2,)), tree=True)

    alone = [run(Engine(ToyModel(), policy()), begin(p, 12, params=params))[0] for p in prompts]
    target = keeping(ToyModel(cache_tokens=cache, max_context=70))
    engine = engine_on(target, policy())
    generations = [begin(p, 12, params=params) for p in prompts]
    for start in range(0, 30, 5):
        run(engine, *generations[start : start + 5])
    assert [output(g) for g in generations] == alone
    assert sum(g.metrics.num_cached_tokens for g in generations) > 0
    blocks = target.prefix_blocks
    assert isinstance(blocks, ToyBlocks) and target.num_open == 0
    assert target.num_used == blocks.num_kept * SIZE  # no cell is lost
    if cache == 80:  # kept blocks alone never make a text wait for ever
        assert run(engine, begin([5] * 60, 5)) == [target.greedy([5] * 60, 5)]


def test_a_draft_s_cache_frees_kept_blocks_before_it_gives_a_text_up() -> None:
    small = keeping(ToyModel(noise=0.1, cache_tokens=70))
    drafter = ModelDrafter(small, 11, prefixes=PrefixCache.of(small))
    policy = FirstProposal([drafter], lambda: Fixed(3))
    engine = Engine(ToyModel(), policy)
    for seed in range(6):
        prompt = np.random.default_rng(seed).integers(0, 11, 40).tolist()
        generation = begin(prompt, 20)
        run(engine, generation)
        assert generation.metrics.num_draft_tokens > 10


@pytest.mark.parametrize("params", [GREEDY, SAMPLED, UNSEEDED], ids=["greedy", "seeded", "unseeded"])
def test_a_draft_reads_a_known_prompt_once_but_where_a_seed_is_to_give_the_same_text(
    params: SamplingParams,
) -> None:
    small = keeping(ToyModel(noise=0.1))
    drafter = ModelDrafter(small, 11, prefixes=PrefixCache.of(small))
    engine = Engine(ToyModel(), FirstProposal([drafter], lambda: Fixed(3)))
    run(engine, begin([*SYSTEM, 1, 2], 10, params=params))
    before = len(small.widths)
    run(engine, begin([*SYSTEM, 3], 10, params=params))
    assert max(small.widths[:before]) > len(SYSTEM)
    assert (max(small.widths[before:]) < SIZE + 3) == (not params.seeded)


@pytest.mark.parametrize("params", [GREEDY, SAMPLED, UNSEEDED], ids=["greedy", "seeded", "unseeded"])
def test_drafts_that_need_the_whole_prompt_s_states_read_it_where_a_seed_is_to_give_the_same_text(
    params: SamplingParams,
) -> None:
    target = keeping(ToyModel(hidden_layers=(1,)))
    drafter = ToyDrafter(ToyModel(noise=0.4), needs=Needs(hidden=True, prompt=True))
    engine = engine_on(target, FirstProposal([drafter], lambda: Fixed(3)))
    run(engine, begin(SYSTEM, 3, params=params))
    second = begin([*SYSTEM, 1], 3, params=params)
    run(engine, second)
    assert second.metrics.num_cached_tokens == (0 if params.seeded else len(SYSTEM))


def test_a_store_gives_another_process_the_blocks() -> None:
    store = Store()
    target = keeping(ToyModel())
    run(engine_on(target, store=store), begin([*SYSTEM, 1], 5))
    assert len(store.blocks) == (len(SYSTEM) + 5) // SIZE
    other = keeping(ToyModel())
    engine = engine_on(other, store=store)
    second, third = begin([*SYSTEM, 2], 10), begin([*SYSTEM, 3], 1)
    assert run(engine, second) == [target.greedy([*SYSTEM, 2], 10)]
    assert second.metrics.num_cached_tokens == len(SYSTEM)
    blocks = other.prefix_blocks
    assert isinstance(blocks, ToyBlocks) and blocks.num_loaded == len(SYSTEM) // SIZE
    run(engine, third)
    assert blocks.num_loaded == len(SYSTEM) // SIZE and third.metrics.num_cached_tokens == len(SYSTEM)


def test_what_the_store_has_of_another_size_is_discarded_and_the_prompt_read() -> None:
    store = Store()
    run(engine_on(keeping(ToyModel()), store=store), begin(SYSTEM, 1))
    store.damage = np.zeros(3, np.uint8)
    target = keeping(ToyModel())
    generation = begin([*SYSTEM, 1], 5)
    assert run(engine_on(target, store=store), generation) == [target.greedy([*SYSTEM, 1], 5)]
    assert len(store.discarded) == 1 and generation.metrics.num_cached_tokens == 0


def test_a_store_in_a_full_cache_takes_only_room_that_is_there() -> None:
    store = Store()
    run(engine_on(keeping(ToyModel()), store=store), begin([*SYSTEM, 1], 5))
    target = keeping(ToyModel(cache_tokens=60))
    engine = engine_on(target, store=store)
    long = begin([9] * 30, 25)
    engine.add(long)
    engine.step()
    second = begin([*SYSTEM, 2], 10)
    assert run(engine, long, second) == [target.greedy(p, n) for p, n in (([9] * 30, 25), ([*SYSTEM, 2], 10))]
    assert second.metrics.num_cached_tokens == len(SYSTEM)


def test_after_a_fault_in_a_step_nothing_of_it_is_kept() -> None:
    target = keeping(ToyModel())
    engine = engine_on(target)
    generation = begin(SYSTEM, 10)
    engine.add(generation)
    target.during_step = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        engine.step()
    target.during_step = None
    generation.cancel()
    engine.tidy()
    assert isinstance(target.prefix_blocks, ToyBlocks) and target.prefix_blocks.num_kept == 0
