"""The sampling law: speculative decoding draws texts as often as plain decoding on this device would."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from specport.conformance.laws import Law, Text, laws_of
from specport.conformance.pair import DRAFTERS, Pair, policy
from specport.conformance.steps import Probe
from specport.core.engine import Engine
from specport.core.policies.length_rules import Fixed
from specport.core.ports import Policy
from specport.core.sampling.params import SamplingParams
from specport.core.sequence import Generation, KeptCache
from specport.core.verify.rules import RULES, rule_for

NUM_TEXTS, LENGTH, TEMPERATURE = 600, 3, 0.6
TOGETHER = 8  # sequences of a batch


def two_tokens() -> Fixed:
    return Fixed(2)


@pytest.fixture(scope="module")
def prompt(ids: list[int]) -> list[int]:
    return ids[:4] * 2  # an n-gram finds the end of it in its middle; a draft reads all of it for each text


@pytest.fixture(scope="module")
def laws(pair: Pair, probe: Probe, prompt: list[int]) -> list[Law]:
    """The laws of texts of 1, 2, ... tokens."""
    handle = pair.target.model.open()
    probe.feed(handle, [prompt[:-1]])
    found = laws_of(probe, handle, prompt[-1], SamplingParams(temperature=TEMPERATURE), LENGTH)
    pair.target.model.close(handle)
    return found


def draws(pair: Pair, drafting: Policy, rule: str, prompt: list[int]) -> Iterator[Text]:
    """Yield texts of one token more than are looked at: the last ones must come out of drafts as well."""
    engine = Engine(pair.target.model, drafting)
    caches = [
        KeptCache() for _ in range(TOGETHER)
    ]  # a new text behind the same prompt does not read it again
    for first in range(0, NUM_TEXTS, TOGETHER):
        generations = []
        for i, kept in enumerate(caches):
            params = SamplingParams(temperature=TEMPERATURE, seed=first + i)
            generations.append(
                Generation(list(prompt), params, LENGTH + 1, rule=rule_for(params, rule), kept=kept)
            )
        for _ in engine.run(generations):
            pass
        yield from (tuple(g.tokens[len(prompt) : len(prompt) + LENGTH]) for g in generations)
    for kept in caches:
        engine.release(kept)
    engine.tidy()


def check(laws: list[Law], texts: list[Text]) -> None:
    for n, law in enumerate(laws, 1):
        statistic, critical = law.chi_square([text[:n] for text in texts])
        assert statistic < critical, (
            f"law of {n} tokens: chi-square {statistic:.1f}; above {critical:.1f} once in 100,000 runs"
        )


@pytest.mark.parametrize("rule", [*RULES])
def test_a_drafted_chain(pair: Pair, laws: list[Law], prompt: list[int], rule: str) -> None:
    check(laws, [*draws(pair, policy(pair, "model", two_tokens), rule, prompt)])


@pytest.mark.needs("tree")
def test_a_drafted_tree(pair: Pair, laws: list[Law], prompt: list[int]) -> None:
    if not pair.draft.model.capabilities.tree:
        pytest.skip("the draft cannot be stepped with trees")
    check(laws, [*draws(pair, policy(pair, "model", lambda: Fixed(2, (2, 2))), "rejection", prompt)])


@pytest.mark.parametrize("name", [name for name in DRAFTERS if "model" not in name])
def test_a_deterministic_chain(pair: Pair, laws: list[Law], prompt: list[int], name: str) -> None:
    """Copied, retrieved and ranked tokens; all but the first kind come from the texts drawn before."""
    check(laws, [*draws(pair, policy(pair, name, two_tokens), "rejection", prompt)])
