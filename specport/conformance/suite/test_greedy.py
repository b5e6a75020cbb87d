"""Greedy equality: speculative decoding writes what plain decoding writes, token for token."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from specport.conformance.pair import DRAFTERS, Pair, policy
from specport.core.engine import Engine
from specport.core.policies.length_rules import Fixed, Heuristic, LengthRule
from specport.core.ports import Model
from specport.core.sampling.params import SamplingParams
from specport.core.sequence import Generation

pytestmark = pytest.mark.needs("exact")
NUM_TOKENS = 32


@pytest.fixture(scope="module")
def prompts(ids: list[int]) -> list[list[int]]:
    """Short, long, and one that repeats itself, which is what n-grams live on."""
    return [ids[:9], ids[200:331], ids[50:62] * 4, ids[80:81]]


@pytest.fixture(scope="module")
def plain(model: Model, prompts: list[list[int]]) -> list[list[int]]:
    engine = Engine(model)
    return [decode(engine, [prompt])[0].tokens for prompt in prompts]


def decode(engine: Engine, prompts: Sequence[Sequence[int]]) -> list[Generation]:
    generations = [Generation(list(prompt), SamplingParams(), NUM_TOKENS) for prompt in prompts]
    for _ in engine.run(generations):
        pass
    return generations


@pytest.mark.parametrize("name", DRAFTERS)
@pytest.mark.parametrize("rule", [lambda: Fixed(1), lambda: Fixed(4), Heuristic], ids=["1", "4", "rising"])
def test_drafted_text_is_the_plain_text(
    pair: Pair,
    prompts: list[list[int]],
    plain: list[list[int]],
    name: str,
    rule: Callable[[], LengthRule],
) -> None:
    engine = Engine(pair.target.model, policy(pair, name, rule))
    done = [decode(engine, [prompt])[0] for prompt in prompts]
    assert [generation.tokens for generation in done] == plain
    accepted = sum(generation.metrics.num_accepted_tokens for generation in done)
    drafted = sum(generation.metrics.num_draft_tokens for generation in done)
    assert drafted > 0, "nothing was drafted, so nothing was tested"
    if pair.tiny and "model" in name:
        assert 0 < accepted < drafted, "both acceptance and rejection must occur"


@pytest.mark.parametrize("name", DRAFTERS)
def test_two_sequences_at_once(
    pair: Pair, prompts: list[list[int]], plain: list[list[int]], name: str
) -> None:
    """Their rounds take turns, or share a step where the device has batches."""
    done = decode(Engine(pair.target.model, policy(pair, name)), prompts)
    assert [generation.tokens for generation in done] == plain


def test_interleaved_runs_share_an_engine(
    pair: Pair, prompts: list[list[int]], plain: list[list[int]]
) -> None:
    """Two requests of a server, token by token in turn, on the same target and the same draft."""
    engine = Engine(pair.target.model, policy(pair, "model"))
    pending = [Generation(list(prompt), SamplingParams(), NUM_TOKENS) for prompt in prompts[:2]]
    runs = [engine.run([generation]) for generation in pending]
    while runs:
        runs = [run for run in runs if next(run, None) is not None]
    assert [generation.tokens for generation in pending] == plain[:2]


@pytest.mark.needs("tree")
@pytest.mark.parametrize("branches", [(2,), (3, 2), (2, 2, 2)], ids=str)
def test_drafted_trees(
    pair: Pair,
    prompts: list[list[int]],
    plain: list[list[int]],
    branches: tuple[int, ...],
) -> None:
    if not pair.draft.model.capabilities.tree:
        pytest.skip("the draft cannot be stepped with trees")
    engine = Engine(pair.target.model, policy(pair, "model", lambda: Fixed(3, branches)))
    done = [decode(engine, [prompt])[0] for prompt in prompts]
    assert [generation.tokens for generation in done] == plain
