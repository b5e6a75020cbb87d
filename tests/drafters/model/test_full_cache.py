"""A draft model whose cache is full: the others go on, nothing is read in vain, nothing leaks."""

from __future__ import annotations

import pytest
from support.generations import PROMPT, begin, drafted, run
from support.toys.toy_model import ToyModel

from specport.core.policies.length_rules import ConfidenceThreshold, Fixed, LengthRule
from specport.core.ports import DraftRequest, Plan
from specport.core.sampling.params import SamplingParams
from specport.core.sampling.sampler import Sampler
from specport.drafters.model import kv_cache
from specport.drafters.model.drafter import ModelDrafter
from specport.drafters.retrieval.recycle import RecycleDrafter
from specport.drafters.tree.graft import GraftDrafter
from specport.drafters.tree.level_proposer import ModelLevels


def request(context: list[int], plan: Plan, key: int = 0) -> DraftRequest:
    return DraftRequest(key, context, plan, Sampler(SamplingParams()))


RULES = [Fixed(4), Fixed(3, (2, 2)), ConfidenceThreshold()]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__ + str(rule.plan().branches))
@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("kind", ["model", "graft"])
@pytest.mark.parametrize("cache_tokens", [8, 30, 60])
def test_text_stays_and_everything_is_given_back(
    rule: LengthRule, batch: bool, kind: str, cache_tokens: int
) -> None:
    target, draft = ToyModel(), ToyModel(noise=0.4, batch=batch, cache_tokens=cache_tokens)
    drafter = ModelDrafter(draft, 11) if kind == "model" else graft(draft)
    prompts = [PROMPT, [1, 2], PROMPT[::-1], [7, 7, 7]]
    generations = [begin(p) for p in prompts]
    assert run(drafted(target, drafter, rule=lambda: rule), *generations) == [
        target.greedy(p, 40) for p in prompts
    ]
    assert draft.num_open == 0 and draft.num_used == 0
    if cache_tokens > 8:
        assert sum(g.metrics.num_drafts for g in generations) > 0


def graft(draft: ToyModel) -> GraftDrafter:
    return GraftDrafter(ModelLevels(draft, 11), [RecycleDrafter(11)])


def test_one_without_room_proposes_nothing_and_the_others_go_on() -> None:
    draft = ToyModel(cache_tokens=24)
    drafter = ModelDrafter(draft, 11)
    contexts = [[1, 2, 3], [i % 11 for i in range(20)]]
    for _ in range(3):
        small, large = drafter.propose([request(c, Plan(3), key) for key, c in enumerate(contexts)])
        assert list(small.tokens) == draft.greedy(contexts[0], 3) and not len(large)
        assert draft.num_open == 1
    assert drafter.behind(request(contexts[1], Plan(3), 1)) == 20  # it still has all to read
    drafter.forget(0)
    (large,) = drafter.propose([request(contexts[1], Plan(3), 1)])
    assert not len(large)  # it would fill the cache and be out again within a few tokens
    drafter.forget(1)
    assert draft.num_used == 0


def test_what_was_freed_is_used_at_once() -> None:
    draft = ToyModel(cache_tokens=100)
    drafter = ModelDrafter(draft, 11)
    contexts = [[i % 11 for i in range(80)], [i % 7 for i in range(18)]]
    first, second = drafter.propose([request(c, Plan(3), key) for key, c in enumerate(contexts)])
    assert len(first) and not len(second)
    draft.widths.clear()
    drafter.propose([request(contexts[1], Plan(3), 1)])
    assert not draft.widths
    drafter.forget(0)
    (second,) = drafter.propose([request(contexts[1], Plan(3), 1)])
    assert list(second.tokens) == draft.greedy(contexts[1], 3)


def test_room_that_came_from_elsewhere_is_found_after_a_pause() -> None:
    draft = ToyModel(cache_tokens=40)
    drafter, context = ModelDrafter(draft, 11), [i % 11 for i in range(50)]
    assert not len(drafter.propose([request(context, Plan(3))])[0])
    draft.cache_tokens = 400  # the machine has memory again
    rounds = 0
    while not len(drafter.propose([request(context, Plan(3))])[0]):
        rounds += 1
    assert rounds == kv_cache.PAUSE


def test_a_sequence_that_outgrows_the_cache_gives_its_memory_back() -> None:
    draft = ToyModel(cache_tokens=40)
    drafter, context = ModelDrafter(draft, 11), [3, 1, 4]
    sizes, read = [], []
    for _ in range(60):
        draft.widths.clear()
        (tree,) = drafter.propose([request(context, Plan(4))])
        sizes.append(len(tree))
        read.append(sum(draft.widths))
        context += draft.greedy(context, 5)[:5]
    full = sizes.index(0)
    assert min(sizes[: full - 1]) == 4  # the last round before may be cut short
    assert not any(sizes[full:]) and draft.num_used == 0
    assert not any(read[full + 1 :])  # and nothing is read in vain


def test_two_that_do_not_fit_together_do_not_take_turns() -> None:
    """Each holds what it has for a good while, so that contexts are seldom read anew."""
    draft = ToyModel(cache_tokens=200)
    drafter = ModelDrafter(draft, 11)
    contexts = [[i % 11 for i in range(80)], [i % 7 for i in range(80)]]
    num_read, num_written = 0, 0
    for _ in range(100):
        draft.widths.clear()
        for key, context in enumerate(contexts):
            (tree,) = drafter.propose([request(context, Plan(4), key)])
            num_written += len(tree)
            if len(context) < 150:
                context.extend(draft.greedy(context, 2))
        num_read += sum(width for width in draft.widths if width > 16)
    assert num_written > 400 and num_read < 1000
    for key in range(2):
        drafter.forget(key)
    assert draft.num_used == 0


def test_only_the_end_of_a_context_has_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "PREFILL_CHUNK", 8)
    draft = ToyModel()
    asked: list[list[str]] = []
    step = draft.step
    monkeypatch.setattr(draft, "step", lambda rows: (asked.append([r.logits for r in rows]), step(rows))[1])
    contexts = [[i % 11 for i in range(20)], [1, 2, 3], [i % 7 for i in range(16)]]
    trees = ModelDrafter(draft, 11).propose([request(c, Plan(1), key) for key, c in enumerate(contexts)])
    assert [list(tree.tokens) for tree in trees] == [draft.greedy(c, 1) for c in contexts]
    assert asked == [["none", "last", "none"], ["none", "last"], ["last"]]
