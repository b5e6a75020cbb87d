"""The sampling law: speculative decoding draws texts as often as plain decoding on this device would."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from specport.conformance.laws import Law, Text, laws_of
from specport.conformance.pair import DRAFTERS, Pair, drafter
from specport.conformance.steps import Probe
from specport.core.engine import Engine, Generation
from specport.core.planning.policies import Fixed
from specport.core.ports import Drafter
from specport.core.sampling.sampler import SamplingParams
from specport.core.verify.rules import RULES, rule_for

NUM_TEXTS, LENGTH, TEMPERATURE = 600, 3, 0.6
TOGETHER = 8  # sequences of a batch


@pytest.fixture(scope="module")
def prompt(ids: list[int]) -> list[int]:
    return ids[:12] * 2  # an n-gram finds the end of it in its middle


@pytest.fixture(scope="module")
def laws(pair: Pair, probe: Probe, prompt: list[int]) -> list[Law]:
    """Of texts of 1, 2, ... tokens."""
    handle = pair.target.model.open()
    probe.feed(handle, [prompt[:-1]])
    found = laws_of(probe, handle, prompt[-1], SamplingParams(temperature=TEMPERATURE), LENGTH)
    pair.target.model.close(handle)
    return found


def draws(pair: Pair, drafting: Drafter, policy: Fixed, rule: str, prompt: list[int]) -> Iterator[Text]:
    """Texts of one token more than are looked at: the last ones must come out of drafts as well."""
    engine = Engine(pair.target.model, drafting)
    handles = [engine.open() for _ in range(TOGETHER)]
    for first in range(0, NUM_TEXTS, TOGETHER):
        generations = []
        for i, handle in enumerate(handles):
            if handle.length:
                engine.rewind(handle, len(prompt) - 1)  # a new text behind the same prompt
            params = SamplingParams(temperature=TEMPERATURE, seed=first + i)
            generations.append(
                Generation(list(prompt), handle, params, policy, LENGTH + 1, rule=rule_for(params, rule))
            )
        for _ in engine.run(generations):
            pass
        yield from (tuple(g.tokens[len(prompt) : len(prompt) + LENGTH]) for g in generations)
    for handle in handles:
        engine.close(handle)


def check(laws: list[Law], texts: list[Text]) -> None:
    for n, law in enumerate(laws, 1):
        statistic, critical = law.chi_square([text[:n] for text in texts])
        assert statistic < critical, (
            f"law of {n} tokens: chi-square {statistic:.1f}; above {critical:.1f} once in 100,000 runs"
        )


@pytest.mark.parametrize("rule", [*RULES])
def test_a_drafted_chain(pair: Pair, laws: list[Law], prompt: list[int], rule: str) -> None:
    check(laws, [*draws(pair, drafter(pair, "model"), Fixed(2), rule, prompt)])


@pytest.mark.needs("tree")
def test_a_drafted_tree(pair: Pair, laws: list[Law], prompt: list[int]) -> None:
    if not pair.draft.model.capabilities.tree:
        pytest.skip("the draft cannot be stepped with trees")
    check(laws, [*draws(pair, drafter(pair, "model"), Fixed(2, (2, 2)), "rejection", prompt)])


@pytest.mark.parametrize("name", [name for name in DRAFTERS if "model" not in name])
def test_a_deterministic_chain(pair: Pair, laws: list[Law], prompt: list[int], name: str) -> None:
    """Copied, retrieved and ranked tokens; all but the first kind come from the texts drawn before."""
    check(laws, [*draws(pair, drafter(pair, name), Fixed(2), "rejection", prompt)])
