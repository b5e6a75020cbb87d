"""Generations and engines on toy models, made and run to their ends: what tests of the loop do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from specport.core.engine import Engine
from specport.core.policies.first_proposal import FirstProposal
from specport.core.policies.length_rules import (
    Fixed,
    LengthRule,
)
from specport.core.ports import Drafter, Model
from specport.core.sampling.params import SamplingParams
from specport.core.sequence import Generation

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
GREEDY = SamplingParams()


def begin(prompt: Sequence[int] = PROMPT, n: int = 40, **fields: Any) -> Generation:
    """Return a new sequence that is to write `n` tokens; greedy where `fields` have no params."""
    return Generation([*prompt], fields.pop("params", GREEDY), n, **fields)


def drafted(
    target: Model, *drafters: Drafter | None, rule: Callable[[], LengthRule] = lambda: Fixed(4)
) -> Engine:
    """Return an engine that asks these drafters in order; without any, it decodes plainly."""
    asked = [drafter for drafter in drafters if drafter is not None]
    policy = FirstProposal(asked, rule, tree=target.capabilities.tree) if asked else None
    return Engine(target, policy)


def run(engine: Engine, *generations: Generation) -> list[list[int]]:
    """Run these sequences to their ends; return what each has written."""
    for _ in engine.run(generations):
        pass
    return [output(g) for g in generations]


def output(generation: Generation) -> list[int]:
    """Return what a sequence has written so far."""
    return generation.tokens[generation.num_prompt_tokens :]
