"""Early exit: the target's own first layers draft, from the loop's side; backends have tests of their own."""

from __future__ import annotations

import pytest
from support.generations import PROMPT, begin, drafted, run
from support.toys.toy_model import ToyExitModel, ToyModel

from specport.core.engine import Engine
from specport.core.planning.planner import Planner
from specport.core.planning.row_plan import Source
from specport.core.planning.step_costs import StepCosts
from specport.core.policies.first_proposal import FirstProposal
from specport.core.policies.length_rules import (
    Fixed,
    make_length_rule,
)
from specport.drafters.model.drafter import EarlyExitDrafter
from specport.drafters.retrieval.ngram import NgramDrafter


@pytest.mark.parametrize("policy", ["fixed", "heuristic", "confidence"])
@pytest.mark.parametrize("batch", [True, False])
def test_the_targets_own_first_layers_draft(policy: str, batch: bool) -> None:
    target = ToyExitModel(batch=batch)
    engine = drafted(target, EarlyExitDrafter(target), rule=lambda: make_length_rule(policy))
    prompts = [PROMPT, [1], [7, 7, 7], PROMPT[::-1]]
    generations = [begin(p) for p in prompts]
    assert run(engine, *generations) == [target.greedy(p, 40) for p in prompts]
    assert target.num_open == 0 and not target.drafted
    assert sum(g.metrics.num_accepted_tokens for g in generations) > 0


def test_a_step_takes_over_all_that_was_drafted_but_the_last_token() -> None:
    target = ToyExitModel(exit_noise=0.0)  # an exit that is always right
    engine = drafted(target, EarlyExitDrafter(target))
    generation = begin([1], n=42)
    assert run(engine, generation) == [target.greedy([1], 42)]
    # The root token and three of four drafts; the exit never read the fourth. Neither the prompt nor the last
    # token had a draft.
    assert target.taken == [0, *[4] * 8, 0]
    assert generation.metrics.num_accepted_tokens == 32


def test_an_early_exit_behind_another_drafter() -> None:
    """A step whose tree is not what was drafted takes over no more than the two have in common."""
    target = ToyExitModel()
    early = EarlyExitDrafter(target)
    prior = StepCosts.prior({1: 1.0, 8: 1.5})
    sources = [Source(NgramDrafter(tokens_per_match=None)), Source(early, prior)]
    first = FirstProposal([NgramDrafter(), early], lambda: Fixed(4))
    for both in (first, Planner(sources, prior, target.capabilities)):
        assert run(Engine(target, both), begin(n=80)) == [target.greedy(PROMPT, 80)]


def test_early_exit_drafts_chains_only_and_stops_at_the_end_of_the_context() -> None:
    target = ToyExitModel(max_context=32)
    engine = drafted(target, EarlyExitDrafter(target), rule=lambda: Fixed(5, (2, 2)))
    generation = begin(PROMPT, 32 - len(PROMPT))
    assert run(engine, generation) == [target.greedy(PROMPT, 32 - len(PROMPT))]
    assert not target.drafted


def test_a_target_without_an_exit_drafts_nothing_early() -> None:
    with pytest.raises(ValueError, match="no early exit"):
        EarlyExitDrafter(ToyModel())


def test_an_exit_without_room_in_the_targets_cache_proposes_nothing() -> None:
    prompts = [PROMPT, PROMPT[::-1]]
    target = ToyExitModel(cache_tokens=len(PROMPT) * 2 + 20)
    engine = drafted(target, EarlyExitDrafter(target))
    assert run(engine, *(begin(p, 20) for p in prompts)) == [target.greedy(p, 20) for p in prompts]
    assert target.num_open == 0
