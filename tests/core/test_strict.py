"""The loop on array_api_strict arrays, which do nothing that the standard does not promise."""

from __future__ import annotations

import pytest
from support.strict_model import StrictModel
from support.toy_model import ToyModel

from specport.core.engine import Engine, Generation
from specport.core.planning.planner import Planner, Source
from specport.core.planning.policies import ConfidenceThreshold, Fixed, Planned
from specport.core.planning.step_costs import StepCosts
from specport.core.ports import Drafter, Policy
from specport.core.sampling.sampler import SamplingParams
from specport.core.verify.rules import rule_for
from specport.drafters.model.drafter import ModelDrafter
from specport.drafters.retrieval.ngram import NgramDrafter

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
COSTS = StepCosts.prior({1: 1.0, 8: 1.5})


def text(kind: type[ToyModel], policy: Policy, planned: bool, params: SamplingParams, rule: str) -> list[int]:
    target, draft = kind(), ModelDrafter(kind(noise=0.4), ToyModel().vocab_size)
    drafter: Drafter = draft
    if planned:
        sources = [Source(NgramDrafter(tokens_per_match=None)), Source(draft, COSTS)]
        drafter = Planner(sources, COSTS, target.capabilities)
    engine = Engine(target, drafter)
    generation = Generation(PROMPT[:], engine.open(), params, policy, 40, rule=rule_for(params, rule))
    for _ in engine.run([generation]):
        pass
    assert generation.metrics.num_draft_tokens > 0
    return generation.tokens[len(PROMPT) :]


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
def test_strict_arrays_give_the_text_that_numpy_gives(plan: str, params: SamplingParams, rule: str) -> None:
    def policy() -> Policy:
        chosen: dict[str, Policy] = {
            "chain": Fixed(3),
            "tree": Fixed(3, (2, 2)),
            "confidence": ConfidenceThreshold(),
            "planned": Planned(),
        }
        return chosen[plan]

    strict = text(StrictModel, policy(), plan == "planned", params, rule)
    assert strict == text(ToyModel, policy(), plan == "planned", params, rule)
