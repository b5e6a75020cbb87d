"""The whole loop keeps the law of plain decoding: chi-square of three-token texts against their exact law."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from support.generations import begin, drafted, output, run
from support.laws.sampling_law import check_law
from support.toys.toy_drafter import ToyDrafter
from support.toys.toy_model import ToyModel

from specport.core.engine import Engine
from specport.core.planning.planner import Planner
from specport.core.planning.row_plan import Source
from specport.core.planning.step_costs import StepCosts
from specport.core.policies.length_rules import Fixed, LengthRule
from specport.core.ports import Drafted, Plan
from specport.core.sampling.params import SamplingParams
from specport.core.verify.rules import rule_for

VOCAB, SAMPLES = 4, 1500
PROMPT = [1, 2, 1, 3, 2]
PARAMS = SamplingParams(temperature=0.9, top_p=0.95, repetition_penalty=1.2)


class Unsure(Fixed):
    """Stops behind a token that is not likely, as a classifier might."""

    top_k = 0

    def plan(self) -> Plan:
        return replace(super().plan(), stop=self)

    def goes_on(self, token: Drafted) -> bool:
        return token.confidences[-1] > 0.3 and token.position < 3


def model(noise: float = 0.0) -> ToyModel:
    return ToyModel(VOCAB, sharpness=1.0, noise=noise)


def texts(counts: np.ndarray, engine: Engine, rule: str, rows: int = 1) -> None:
    """Counts texts of rounds of `rows` sequences, each with a random stream of its own."""
    for first in range(0, SAMPLES, rows):
        generations = []
        for seed in range(first, first + rows):
            params = replace(PARAMS, seed=seed)
            generation = begin(PROMPT, 3, params=params, rule=rule_for(params, rule))
            if isinstance(engine.policy, Planner):  # as if without a seed: with one, texts learn nothing
                generation.sampler.params = replace(params, seed=None)
            generations.append(generation)
        for text in run(engine, *generations):
            counts[tuple(text)] += 1


@pytest.mark.parametrize(
    ("kind", "rule", "branches"),
    [
        (Fixed, "rejection", ()), (Fixed, "block", ()), (Fixed, "rejection", (3, 2)), (Fixed, "block", (2,)),
        (Unsure, "rejection", (2, 2)), (Unsure, "block", ()), (Fixed, "match", ()), (Fixed, "match", (3, 2)),
    ],
)  # fmt: skip
def test_any_draft_keeps_the_law(
    kind: Callable[..., LengthRule], rule: str, branches: tuple[int, ...]
) -> None:
    target, counts = model(), np.zeros((VOCAB,) * 3)
    engine = drafted(target, ToyDrafter(model(0.7)), rule=lambda: kind(3, branches))
    texts(counts, engine, rule)
    check_law(counts, target, PROMPT, PARAMS)


@pytest.mark.parametrize("rows", [1, 3])
def test_the_planner_keeps_the_law_of_every_row(rows: int) -> None:
    """What one row drafts is cut by what the others do; what was drawn must be verified all the same."""
    target, counts = model(), np.zeros((VOCAB,) * 3)
    cheap = StepCosts((1, 2, 8), (0,), ((0.25 / rows, 0.26 / rows, 0.3 / rows),), measured=True)
    free, drawn = ToyDrafter(model(0.7), drawn=False), ToyDrafter(model(0.5))
    # A step is dear beyond a width of five: rows compete for it.
    steps = StepCosts((1, 5, 6, 16), (0,), ((1.0, 1.03, 1.4, 4.0),), measured=True)
    engine = Engine(target, Planner([Source(free), Source(drawn, cheap)], steps))
    texts(counts, engine, "rejection", rows)
    check_law(counts, target, PROMPT, PARAMS)
    trees = [outcome.tree for outcome in (*free.outcomes, *drawn.outcomes)]
    assert {(len(tree), tree.probs is None) for tree in trees} >= {(1, True), (1, False), (0, True)}


@pytest.mark.parametrize("branches", [(), (2, 2)])
def test_with_matching_a_seed_gives_the_text_of_plain_decoding(branches: tuple[int, ...]) -> None:
    """Also where texts share steps, and where some are computed anew."""
    accepted = preempted = 0
    for seed in range(40):
        params = [replace(PARAMS, seed=2 * seed + i) for i in range(2)]
        plain = [run(Engine(model()), begin(PROMPT, 20, params=each))[0] for each in params]
        small = ToyModel(VOCAB, sharpness=1.0, cache_tokens=40, max_context=40)
        engine = drafted(small, ToyDrafter(model(0.7)), rule=lambda: Fixed(3, branches))
        found = [begin(PROMPT, 20, params=each, rule=rule_for(each, "match")) for each in params]
        engine._scheduler._fits = lambda generation: True  # as soon as it came
        assert run(engine, *found) == plain
        accepted += sum(each.metrics.num_accepted_tokens for each in found)
        preempted += sum(each.metrics.num_preemptions for each in found)
    assert accepted and preempted


def test_texts_that_are_computed_anew_keep_the_law() -> None:
    target, counts = model(), np.zeros((VOCAB,) * 3)
    preempted = 0
    for seed in range(SAMPLES // 2):
        small = ToyModel(VOCAB, sharpness=1.0, cache_tokens=11, max_context=8)
        engine = drafted(small, ToyDrafter(model(0.7)), rule=lambda: Fixed(2))
        generations = [begin(PROMPT, 3, params=replace(PARAMS, seed=2 * seed + i)) for i in range(2)]
        for generation in generations:
            engine.add(generation)
        engine._scheduler._fits = lambda generation: True  # as soon as it came
        while engine.num_unfinished:
            engine.step()
        for generation in generations:
            counts[tuple(output(generation))] += 1
            preempted += generation.metrics.num_preemptions
    assert preempted > SAMPLES // 4
    check_law(counts, target, PROMPT, PARAMS)
