"""New weights between rounds, on a toy model: what was computed with the old ones goes, in every engine."""

from __future__ import annotations

import pytest
from support.generations import PROMPT, begin, drafted, output, run
from support.toys.toy_blocks import keeping
from support.toys.toy_drafter import ToyDrafter
from support.toys.toy_model import ToyModel
from support.toys.toy_weights import Tables

from specport.core.engine import Engine
from specport.core.prefix_cache import PrefixCache
from specport.core.sequence import KeptCache
from specport.errors import DeviceError, InvalidInput


def toy() -> tuple[ToyModel, Tables, ToyModel]:
    """Return a toy with its updates, and one with other weights."""
    model = keeping(ToyModel())
    model.weight_updates = updates = Tables(model)
    return model, updates, ToyModel(seed=9)


def test_texts_in_all_engines_go_on_with_the_new_weights() -> None:
    model, updates, other = toy()
    first = drafted(model, ToyDrafter(ToyModel(noise=0.4)))
    engines = [first, first.beside(None)]
    generations = [begin(), begin()]
    for engine, generation in zip(engines, generations, strict=True):
        engine.add(generation)
        for _ in range(4):
            engine.step()
    begun = [output(generation) for generation in generations]
    assert model.num_open == 2 and all(begun)
    engines[1].update_weights({"table": other.table})
    assert updates.num_open == [0]
    for engine, generation, text in zip(engines, generations, begun, strict=True):
        while not generation.ended:
            engine.step()
        assert output(generation) == text + other.greedy([*PROMPT, *text], 40 - len(text))
        engine.tidy()
    assert model.num_open == 0


def test_kept_caches_and_blocks_are_dropped() -> None:
    model, updates, other = toy()
    prefixes = PrefixCache.of(model)
    assert prefixes is not None
    engine, kept = Engine(model, prefixes=prefixes), KeptCache()
    old = run(engine, begin(kept=kept))
    assert kept.handle is not None and prefixes.num_blocks > 0
    engine.update_weights({"table": other.table})
    assert updates.num_open == [0] and kept.handle is None and prefixes.num_blocks == 0
    new = other.greedy(PROMPT, 40)
    again = begin(kept=kept)
    assert run(engine, again, begin()) == [new, new] and [new] != old
    assert again.metrics.num_cached_tokens == 0


def test_nothing_happens_to_what_is_refused() -> None:
    model, updates, _ = toy()
    engine, kept = Engine(model), KeptCache()
    run(engine, begin(kept=kept))
    with pytest.raises(InvalidInput, match="one weight"):
        engine.update_weights({"other": model.table})
    assert updates.num_open == [] and kept.handle is not None
    with pytest.raises(DeviceError, match="cannot be replaced"):
        Engine(ToyModel()).update_weights({})


def test_drafters_forget_what_was_preempted_before() -> None:
    model = ToyModel(cache_tokens=80, max_context=40)
    model.weight_updates = Tables(model)
    drafter = ToyDrafter(ToyModel(noise=0.4))
    engine, generations = drafted(model, drafter), [begin([i], 35) for i in range(4)]
    for generation in generations:
        engine.add(generation)
    for _ in range(40):
        if not any(g.metrics.num_preemptions for g in generations):
            engine.step()
    waiting = {g.key for g in generations if g.metrics.num_preemptions and not g.ended}
    assert waiting & drafter.keys
    engine.update_weights({"table": ToyModel(seed=9).table})
    assert not drafter.keys
