"""The loop on array_api_strict arrays, which do nothing that the standard does not promise."""

from __future__ import annotations

import pytest
from support.generations import PROMPT, begin, output, run
from support.toys.strict_model import StrictModel
from support.toys.toy_drafter import ToyDrafter
from support.toys.toy_model import ToyModel

from specport.core.engine import Engine
from specport.core.planning.planner import Planner
from specport.core.planning.row_plan import Source
from specport.core.planning.step_costs import StepCosts
from specport.core.policies.first_proposal import FirstProposal
from specport.core.policies.length_rules import (
    ConfidenceThreshold,
    Fixed,
    LengthRule,
)
from specport.core.ports import Drafter, Needs, Policy
from specport.core.sampling.params import SamplingParams
from specport.core.verify.rules import rule_for
from specport.drafters.model.drafter import ModelDrafter
from specport.drafters.retrieval.ngram import NgramDrafter

COSTS = StepCosts.prior({1: 1.0, 8: 1.5})
RULES: dict[str, LengthRule] = {"chain": Fixed(3), "tree": Fixed(3, (2, 2))}


def text(kind: type[ToyModel], plan: str, params: SamplingParams, rule: str, draft: str) -> list[int]:
    target = kind()
    needs = Needs(hidden=True, top_k=2)
    drafter: Drafter = ToyDrafter(ToyModel(noise=0.4), needs=needs)
    if draft == "model":
        drafter = ModelDrafter(kind(noise=0.4), target.vocab_size)
    policy: Policy
    if plan == "planned":
        sources = [Source(NgramDrafter(tokens_per_match=None)), Source(drafter, COSTS.fixed())]
        policy = Planner(sources, COSTS, target.capabilities)
    else:
        policy = FirstProposal([drafter], lambda: RULES.get(plan) or ConfidenceThreshold())
    generation = begin(PROMPT, 40, params=params, rule=rule_for(params, rule), logprobs=3)
    run(Engine(target, policy), generation)
    assert generation.metrics.num_draft_tokens > 0 and len(generation.token_logprobs) == 40
    return output(generation)


@pytest.mark.parametrize("rule", ["rejection", "block"])
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(repetition_penalty=1.3),
        SamplingParams(temperature=0.8, top_k=6, top_p=0.95, min_p=0.01, repetition_penalty=1.1, seed=3),
    ],
    ids=["greedy", "penalty", "sampled"],
)
@pytest.mark.parametrize("plan", ["chain", "tree", "confidence", "planned"])
@pytest.mark.parametrize("draft", ["toy", "model"])
def test_strict_arrays_give_the_text_that_numpy_gives(
    draft: str, plan: str, params: SamplingParams, rule: str
) -> None:
    assert text(StrictModel, plan, params, rule, draft) == text(ToyModel, plan, params, rule, draft)
