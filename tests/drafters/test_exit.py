"""Early exit: the target's own first layers draft, from the loop's side; backends have tests of their own."""

from __future__ import annotations

import pytest
from support.generations import PROMPT, begin, run
from support.toy_model import ToyExitModel

from specport.core.engine import Engine
from specport.core.planning.planner import Planner, Source
from specport.core.planning.policies import Fixed, make_policy
from specport.core.planning.step_costs import StepCosts
from specport.drafters.cascade import Cascade
from specport.drafters.model.drafter import EarlyExitDrafter
from specport.drafters.retrieval.ngram import NgramDrafter


@pytest.mark.parametrize("policy", ["planned", "fixed", "heuristic", "confidence"])
@pytest.mark.parametrize("batch", [True, False])
def test_the_targets_own_first_layers_draft(policy: str, batch: bool) -> None:
    target = ToyExitModel(batch=batch)
    engine = Engine(target, EarlyExitDrafter(target))
    prompts = [PROMPT, [1], [7, 7, 7], PROMPT[::-1]]
    generations = [begin(engine, p, policy=make_policy(policy)) for p in prompts]
    assert run(engine, *generations) == [target.greedy(p, 40) for p in prompts]
    assert target.num_open == 0 and not target.drafted
    assert sum(g.metrics.num_accepted_tokens for g in generations) > 0


def test_a_step_takes_over_all_that_was_drafted_but_the_last_token() -> None:
    target = ToyExitModel(exit_noise=0.0)  # an exit that is always right
    engine = Engine(target, EarlyExitDrafter(target))
    generation = begin(engine, [1], n=41, policy=Fixed(4))
    assert run(engine, generation) == [target.greedy([1], 41)]
    # The root token and three of four drafts; the exit never read the fourth. The last token had no draft.
    assert target.taken == [*[4] * 8, 0]
    assert generation.metrics.num_accepted_tokens == 32


def test_an_early_exit_behind_another_drafter() -> None:
    """A step whose tree is not what was drafted takes over no more than the two have in common."""
    target = ToyExitModel()
    early = EarlyExitDrafter(target)
    prior = StepCosts.prior({1: 1.0, 8: 1.5})
    sources = [Source(NgramDrafter(tokens_per_match=None)), Source(early, prior)]
    for both in (Cascade(NgramDrafter(), early), Planner(sources, prior, target.capabilities)):
        engine = Engine(target, both)
        assert run(engine, begin(engine, n=80)) == [target.greedy(PROMPT, 80)]


def test_early_exit_drafts_chains_only_and_stops_at_the_end_of_the_context() -> None:
    target = ToyExitModel(max_context=32)
    engine = Engine(target, EarlyExitDrafter(target))
    generation = begin(engine, PROMPT, 32 - len(PROMPT), policy=Fixed(5, (2, 2)))
    assert run(engine, generation) == [target.greedy(PROMPT, 32 - len(PROMPT))]
    assert not target.drafted
