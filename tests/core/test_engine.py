"""The loop on toy models: same text as plain decoding whatever is drafted, and nothing left behind."""

from __future__ import annotations

import threading

import pytest
from support.generations import PROMPT, begin, drafted, output, run
from support.toys.toy_drafter import ToyDrafter
from support.toys.toy_model import ToyModel

from specport.core.engine import Engine
from specport.core.planning.planner import Planner
from specport.core.planning.row_plan import Source
from specport.core.planning.step_costs import StepCosts
from specport.core.policies.first_proposal import FirstProposal
from specport.core.policies.length_rules import (
    Fixed,
    make_length_rule,
)
from specport.core.ports import Needs, Plan, Policy
from specport.core.sampling.params import SamplingParams
from specport.core.sequence import KeptCache

COSTS = StepCosts.prior({1: 1.0, 8: 1.5})
CHEAP = StepCosts.prior({1: 1.0, 8: 1.5})  # of a draft that was never timed: a third of the target's
PROMPTS = [PROMPT, [1], [7, 7, 7], PROMPT[::-1]]


def policy(name: str, target: ToyModel, noise: float = 0.4) -> Policy | None:
    if name == "none":
        return None
    drafter = ToyDrafter(ToyModel(noise=noise))
    if name == "planned":
        return Planner([Source(drafter, CHEAP)], COSTS, target.capabilities)
    return FirstProposal([drafter], lambda: make_length_rule(name), tree=target.capabilities.tree)


@pytest.mark.parametrize("name", ["none", "planned", "fixed", "heuristic", "confidence"])
@pytest.mark.parametrize("batch", [True, False])
def test_greedy_text_equals_plain_decoding(name: str, batch: bool) -> None:
    target = ToyModel(batch=batch)
    generations = [begin(p) for p in PROMPTS]
    texts = run(Engine(target, policy(name, target)), *generations)
    assert texts == [target.greedy(p, 40) for p in PROMPTS]
    assert target.num_open == 0
    assert (sum(g.metrics.num_accepted_tokens for g in generations) > 0) == (name != "none")


@pytest.mark.parametrize("branches", [(2,), (3, 2), (2, 2, 2), (1, 3)])
def test_trees_give_the_same_text(branches: tuple[int, ...]) -> None:
    target = ToyModel()
    engine = drafted(target, ToyDrafter(ToyModel(noise=0.8)), rule=lambda: Fixed(4, branches))
    generation = begin()
    assert run(engine, generation) == [target.greedy(PROMPT, 40)]
    assert generation.metrics.num_accepted_tokens > 0


def test_trees_accept_more_than_chains() -> None:
    lengths = []
    for plan in (Fixed(4), Fixed(4, (3, 2))):
        engine = drafted(ToyModel(), ToyDrafter(ToyModel(noise=0.8)), rule=lambda plan=plan: plan)
        generation = begin(n=80)
        run(engine, generation)
        lengths.append(generation.metrics.mean_acceptance_length)
    assert lengths[1] > lengths[0]


def test_branches_are_dropped_where_the_target_has_no_trees() -> None:
    target = ToyModel(tree=False)
    engine = drafted(target, ToyDrafter(ToyModel(noise=0.4)), rule=lambda: Fixed(3, (2, 2)))
    assert run(engine, begin()) == [target.greedy(PROMPT, 40)]


@pytest.mark.parametrize("n", [1, 2, 3, 39, 40])
def test_never_more_than_max_new_tokens(n: int) -> None:
    target = ToyModel()
    generation = begin(n=n)
    engine = drafted(target, ToyDrafter(target), rule=lambda: Fixed(6))  # a perfect draft
    assert run(engine, generation) == [target.greedy(PROMPT, n)]
    assert generation.finish_reason == "length"
    assert generation.metrics.num_output_tokens == n


def test_end_token_inside_an_accepted_path_ends_the_text_there() -> None:
    target = ToyModel()
    eos = frozenset([target.greedy(PROMPT, 40)[7]])
    generation = begin(eos_ids=eos)
    engine = drafted(target, ToyDrafter(target), rule=lambda: Fixed(6))
    assert run(engine, generation) == [target.greedy(PROMPT, 40, eos)]
    assert generation.finish_reason == "stop"


def test_a_watcher_sees_every_token_and_may_end_the_text() -> None:
    target = ToyModel()
    seen: list[tuple[int, str]] = []

    def watch(token: int, source: str) -> bool:
        seen.append((token, source))
        return len(seen) == 7

    generation = begin(on_token=watch)
    (text,) = run(drafted(target, ToyDrafter(target)), generation)
    assert text == target.greedy(PROMPT, 7) == [token for token, _ in seen]
    assert [source for _, source in seen] == ["", "toy", "toy", "toy", "toy", "", "toy"]
    assert generation.finish_reason == "stop"


def test_context_is_filled_to_its_last_token() -> None:
    target = ToyModel(max_context=32)
    generation = begin(n=100)
    engine = drafted(target, ToyDrafter(target), rule=lambda: Fixed(5, (2, 2)))
    # The last token need not be read.
    assert run(engine, generation) == [target.greedy(PROMPT, 33 - len(PROMPT))]
    assert generation.finish_reason == "length" and target.num_open == 0


@pytest.mark.parametrize("name", ["none", "fixed", "heuristic", "planned"])
def test_a_seed_gives_the_same_text_twice_and_alone_or_in_a_batch(name: str) -> None:
    params = SamplingParams(temperature=1.0, seed=5)
    target = ToyModel()
    engine = Engine(target, policy(name, target))
    alone = run(engine, begin(params=params))
    assert run(engine, begin(params=params)) == alone
    both = run(engine, begin([2, 2], params=params), begin(params=params))
    assert both[1:] == alone


def test_cancel_ends_before_the_next_step_and_keeps_the_text() -> None:
    target = ToyModel(step_seconds=0.002)
    generation = begin(n=200)
    timer = threading.Timer(0.05, generation.cancel)
    timer.start()
    (text,) = run(Engine(target), generation)
    assert generation.finish_reason == "cancelled"
    assert 0 < len(text) < 200
    assert text == target.greedy(PROMPT, len(text))


def test_what_was_cancelled_before_it_was_added_writes_nothing() -> None:
    target = ToyModel()
    engine, generation = Engine(target), begin()
    engine.cancel(generation)
    assert run(engine, generation) == [[]] and generation.finish_reason == "cancelled"
    assert not target.steps


def test_closing_the_iterator_frees_the_sequence_with_the_next_call() -> None:
    target = ToyModel()
    drafter = ToyDrafter(target)
    engine = drafted(target, drafter)
    commits = engine.run([begin()])
    next(commits)
    next(commits)
    assert drafter.keys and target.num_open == 1
    commits.close()
    engine.tidy()
    assert not drafter.keys and target.num_open == 0 and engine.num_unfinished == 0


def test_metrics_count_what_happened() -> None:
    target = ToyModel()
    generation = begin(n=11)
    run(drafted(target, ToyDrafter(target)), generation)
    metrics = generation.metrics
    # 1 token from the prompt, then two rounds of 4 drafted and 1 bonus token.
    assert (metrics.num_steps, metrics.num_drafts, metrics.num_draft_tokens) == (2, 2, 8)
    assert metrics.num_accepted_tokens == 8
    assert metrics.mean_acceptance_length == 5.0
    assert metrics.acceptance_rate == 1.0
    assert metrics.acceptance_rate_per_position == [1.0] * 4
    assert metrics.drafted_by == metrics.accepted_by == {"toy": 8}
    assert metrics.num_output_tokens == 11
    assert 0 < metrics.queue_s <= metrics.ttft_s


@pytest.mark.parametrize("most", [0, 1, 3, None])
def test_a_sequence_bounds_its_own_drafts(most: int | None) -> None:
    target = ToyModel()
    generation = begin(n=30, max_draft_tokens=most)
    assert run(drafted(target, ToyDrafter(target)), generation) == [target.greedy(PROMPT, 30)]
    assert len(generation.metrics.drafted_per_depth) == (4 if most is None else most)


def test_what_is_committed_comes_out_of_the_iterator_once_and_in_order() -> None:
    target = ToyModel()
    generations = [begin(p, 25) for p in PROMPTS]
    found: dict[int, list[int]] = {g.key: [] for g in generations}
    sources: dict[int, list[str]] = {g.key: [] for g in generations}
    for commit in drafted(target, ToyDrafter(ToyModel(noise=0.4))).run(generations):
        assert len(commit.tokens) == len(commit.sources)
        found[commit.generation.key] += commit.tokens
        sources[commit.generation.key] += commit.sources
    for g in generations:
        assert found[g.key] == output(g) == target.greedy(g.tokens[: g.num_prompt_tokens], 25)
        assert sources[g.key].count("toy") == g.metrics.accepted_by["toy"]


def test_drafters_are_told_of_every_prompt_token_and_of_every_round() -> None:
    target = ToyModel(hidden_layers=(1,))
    drafter = ToyDrafter(ToyModel(noise=0.4), needs=Needs(hidden=True, top_k=3))
    generations = [begin(p, 20) for p in PROMPTS]
    run(drafted(target, drafter), *generations)
    for g in generations:
        events = [event for event in drafter.events if event.key == g.key]
        assert [token for event in events for token in event.tokens] == g.tokens[: g.num_prompt_tokens]
        assert all((e.hidden[1].argmax(axis=1) == [(t + 1) % 11 for t in e.tokens]).all() for e in events)
        outcomes = [outcome for outcome in drafter.outcomes if outcome.key == g.key]
        assert len(outcomes) == g.metrics.num_steps
        place = g.num_prompt_tokens
        for outcome in outcomes:
            assert (outcome.root, outcome.context) == (g.tokens[place], place)
            nodes = [outcome.root, *outcome.tree.tokens]
            assert (outcome.hidden[1].argmax(axis=1) == [(t + 1) % 11 for t in nodes]).all()
            assert outcome.top is not None and outcome.top.shape == (len(nodes), 3)
            place += 1 + outcome.num_accepted_tokens
        assert place == len(g.tokens) - 1  # the last one is not read


def test_engines_beside_one_another_share_the_model() -> None:
    target = ToyModel()
    plain = Engine(target)
    other = plain.beside(policy("fixed", target))
    first, second = plain.run([begin()]), other.run([begin()])
    texts: list[list[int]] = [[], []]
    for a, b in zip(first, second, strict=False):  # their rounds alternate
        texts[0] += a.tokens
        texts[1] += b.tokens
    assert len(texts[1]) == 40 > len(texts[0])
    assert texts[1] == target.greedy(PROMPT, 40) and texts[0] == texts[1][: len(texts[0])]
    first.close()
    other.tidy()
    assert target.num_open == 1
    plain.tidy()
    assert target.num_open == 0


def test_engines_beside_one_another_free_each_other_s_kept_caches() -> None:
    """Each text needs the whole cache, of which the other engine's conversation keeps most."""
    target = ToyModel(cache_tokens=64)
    first = Engine(target)
    second = first.beside(None)
    kept = [KeptCache(), KeptCache()]
    for turn in range(6):
        i = turn % 2
        generation = begin(PROMPT, 40, kept=kept[i])
        for _ in (first, second)[i].run([generation]):
            pass
        assert generation.finish_reason == "length" and output(generation) == target.greedy(PROMPT, 40)
        assert kept[i].handle is not None and kept[1 - i].handle is None
    second.release(kept[1])
    second.tidy()
    assert target.num_open == 0


def test_a_text_that_grows_frees_what_an_engine_beside_it_keeps() -> None:
    target = ToyModel(cache_tokens=100)
    first = Engine(target)
    second = first.beside(None)
    running = first.run([begin([1], 80)])
    next(running)  # admitted while there was room for both
    kept = KeptCache()
    for _ in second.run([begin([2], 40, kept=kept)]):
        pass
    tokens = [token for commit in running for token in commit.tokens]
    assert tokens == target.greedy([1], 80)[1:] and kept.handle is None and target.num_open == 0


def test_plan_max_nodes() -> None:
    assert Plan(0).max_nodes == 0
    assert Plan(3).max_nodes == 3
    assert Plan(3, (2, 2)).max_nodes == 2 + 4 + 4
