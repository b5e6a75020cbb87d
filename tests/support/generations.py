"""Generations on an engine, begun and run to their ends: what tests of the loop do."""

from __future__ import annotations

from specport.core.engine import Engine, Generation
from specport.core.planning.policies import Fixed
from specport.core.sampling.sampler import SamplingParams

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
GREEDY = SamplingParams()


def begin(engine: Engine, prompt: list[int] = PROMPT, n: int = 40, **fields: object) -> Generation:
    fields.setdefault("policy", Fixed(4))
    fields.setdefault("params", GREEDY)
    return Generation(list(prompt), engine.open(), max_new_tokens=n, **fields)  # type: ignore[arg-type]


def run(engine: Engine, *generations: Generation) -> list[list[int]]:
    for _ in engine.run(generations):
        pass
    for g in generations:
        engine.close(g.handle)
    return [g.tokens[g.num_prompt_tokens :] for g in generations]
