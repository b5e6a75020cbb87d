"""Drafts by a head on the target's hidden states: the text and its law are those of plain decoding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.generations import PROMPT, begin, drafted, output, run
from support.laws.sampling_law import check_law
from support.toys.toy_head import ToyHead
from support.toys.toy_model import ToyModel

from specport.core.engine import Engine
from specport.core.planning.planner import Planner
from specport.core.planning.row_plan import Source
from specport.core.planning.step_costs import StepCosts
from specport.core.policies.length_rules import Fixed, Threshold, make_length_rule
from specport.core.ports import DraftRequest, Needs, Outcome, Plan, Prefilled
from specport.core.sampling.params import SamplingParams
from specport.core.sampling.sampler import Sampler
from specport.core.tree import TokenTree
from specport.core.verify.rules import rule_for
from specport.drafters.model.hidden_head import HiddenHeadDrafter

PROMPTS = [PROMPT, [1, 2], [7, 7, 7], PROMPT[::-1]]
LAYERS = (1, 3)


def target_model(vocab: int = 11, **options: Any) -> ToyModel:
    return ToyModel(vocab, hidden_layers=LAYERS, **options)


def drafter(target: ToyModel, *args: Any, **options: Any) -> tuple[HiddenHeadDrafter, ToyHead]:
    head = ToyHead(target, *args, **options)
    return HiddenHeadDrafter(head, target.vocab_size), head


def read(asked: HiddenHeadDrafter, target: ToyModel, tokens: list[int], key: int = 0, start: int = 0) -> None:
    """Let a drafter know that the target has read these tokens of a prompt."""
    hidden = {layer: np.stack([target.hidden_row(layer, t) for t in tokens]) for layer in LAYERS}
    asked.prefilled([Prefilled(key, start, tokens, hidden)])


def request(context: list[int], plan: Plan, key: int = 0, **params: Any) -> DraftRequest:
    return DraftRequest(key, context, plan, Sampler(SamplingParams(**params)))


def chain(head: ToyHead, context: list[int], depth: int) -> list[int]:
    text = [*context]
    for _ in range(depth):
        text.append(int(head.table[text[-2], text[-1]].argmax()))
    return text[len(context) :]


@pytest.mark.parametrize("together", [1, 3])
def test_a_chain_starts_from_the_token_before_the_root(together: int) -> None:
    target = target_model()
    asked, head = drafter(target, together=together)
    assert asked.needs == Needs(hidden=True)
    read(asked, target, [4, 9])
    read(asked, target, [2, 6], start=2)  # the second part of the prompt
    (tree,) = asked.propose([request([4, 9, 2, 6, 8], Plan(5))])
    assert list(tree.tokens) == chain(head, [6, 8], 5) and tree.is_chain and not tree.confidence
    assert set(tree.sources) == {"head"}


def test_nothing_is_drafted_without_the_states_of_the_last_token() -> None:
    target = target_model()
    asked, head = drafter(target)
    assert not len(asked.propose([request([4, 9, 2], Plan(3))])[0])  # nothing was read
    read(asked, target, [4, 9])
    assert not len(asked.propose([request([4, 9, 2, 6], Plan(3))])[0])  # 2 was read without states
    assert len(asked.propose([request([4, 9, 2], Plan(3))])[0]) == 3
    asked.forget(0)
    assert not len(asked.propose([request([4, 9, 2], Plan(3))])[0])
    asked.prefilled([Prefilled(1, 0, [4, 9])])  # no states came along
    assert not len(asked.propose([request([4, 9, 2], Plan(3), key=1)])[0])
    assert head.num_rows == [1, 1, 1]


@pytest.mark.parametrize("path", [(), (0,), (0, 2)])
def test_the_state_after_a_round_is_that_of_the_last_accepted_token(path: tuple[int, ...]) -> None:
    target = target_model()
    asked, head = drafter(target)
    tree = TokenTree((5, 7, 3), (-1, 0, 0))
    rows = [8, *tree.tokens]  # the root token first
    hidden = {layer: np.stack([target.hidden_row(layer, t) for t in rows]) for layer in LAYERS}
    asked.observe([Outcome(0, tree, path, context=4, hidden=hidden)])
    for states in hidden.values():
        states[:] = 0.0  # the target's next step overwrites them
    context = [0, 1, 2, 3, 8, *(tree.tokens[node] for node in path), 10]
    (drafts,) = asked.propose([request(context, Plan(2))])
    assert list(drafts.tokens) == chain(head, context[-2:], 2)


def test_a_stop_rule_ends_each_chain_where_it_says() -> None:
    target = target_model()
    asked, head = drafter(target)
    for key, tokens in enumerate(([4, 9], [3, 3])):
        read(asked, target, tokens, key)
    requests = [request([4, 9, 2], Plan(6, stop=Threshold(0.0))), request([3, 3, 1], Plan(6), key=1)]
    whole, other = asked.propose(requests)
    for token, confidence, before, last in zip(
        whole.tokens, whole.confidence, [9, 2, *whole.tokens], [2, *whole.tokens], strict=False
    ):
        weights = np.exp(head.table[before, last].astype(np.float64))
        assert confidence == pytest.approx(weights[token] / weights.sum(), rel=1e-4)
    least = sorted(whole.confidence)[1]
    first = next(i for i, confidence in enumerate(whole.confidence) if confidence < least)
    head.num_rows.clear()
    cut, same = asked.propose([replace(requests[0], plan=Plan(6, stop=Threshold(least))), requests[1]])
    assert cut.tokens == whole.tokens[: first + 1] and same.tokens == other.tokens
    assert head.num_rows == [2] * (first + 1) + [1] * (5 - first)  # the row that stopped is not computed


@pytest.mark.parametrize("rule", ["fixed", "heuristic", "confidence"])
@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("together", [1, 3])
def test_greedy_text_equals_plain_decoding(rule: str, batch: bool, together: int) -> None:
    target = target_model(batch=batch)
    asked, head = drafter(target, together=together)
    engine = drafted(target, asked, rule=lambda: make_length_rule(rule))
    generations = [begin(p) for p in PROMPTS]
    assert run(engine, *generations) == [target.greedy(p, 40) for p in PROMPTS]
    assert sum(g.metrics.num_accepted_tokens for g in generations) > 0
    assert target.num_open == 0
    assert not asked._states._states and not asked._states.hidden._texts  # all was forgotten
    assert max(head.num_rows) == (len(PROMPTS) if batch else 1)


def test_processed_logits_are_drafted_step_by_step() -> None:
    target = target_model()
    asked, _ = drafter(target, 0.0)
    params = SamplingParams(repetition_penalty=1.3)
    texts = []
    for drafters in ((), (asked,)):
        generation = begin(params=params)
        texts += run(drafted(target, *drafters), generation)
    assert texts[0] == texts[1]
    assert generation.metrics.num_accepted_tokens > 20  # the head's table is the target's


def test_trees_are_drafted_from_the_states_of_their_nodes() -> None:
    target = target_model()
    asked, head = drafter(target)
    read(asked, target, [4, 9])
    (tree,) = asked.propose([request([4, 9, 2], Plan(3, (2, 2)))])
    for node, token in enumerate(tree.tokens):
        path = [9, 2, *(tree.tokens[i] for i in tree.path(node)[:-1])]
        width = 2 if len(path) < 4 else 1
        assert token in np.argsort(head.table[path[-2], path[-1]])[-width:]
    assert len(tree) == 2 + 4 + 4
    generation = begin()
    engine = drafted(target, asked, rule=lambda: Fixed(3, (3, 2)))
    assert run(engine, generation) == [target.greedy(PROMPT, 40)]
    assert generation.metrics.num_accepted_tokens > 0


def test_texts_that_are_preempted_are_read_with_states_again() -> None:
    target = target_model(cache_tokens=60)
    asked, _ = drafter(target)
    generations = [begin(p) for p in PROMPTS]
    assert run(drafted(target, asked), *generations) == [target.greedy(p, 40) for p in PROMPTS]
    assert target.num_open == 0


def test_the_planner_drafts_with_a_cheap_head_from_the_first_round() -> None:
    """No cost of the head is known: what is assumed lets it draft at once, and plain steps cost the same."""
    target = target_model()
    asked, _ = drafter(target, 0.1)
    steps = StepCosts.prior({1: 1.0, 2: 1.0, 4: 1.1, 8: 1.4, 16: 2.0})
    for assumed, drafts in ((0.05, True), (3.0, False)):
        planner = Planner([Source(asked, StepCosts.prior({1: 1.0}), (), assumed)], steps)
        generation = begin()
        (tokens,) = run(Engine(target, planner), generation)
        assert tokens == target.greedy(PROMPT, 40)
        assert (generation.metrics.num_accepted_tokens > 20) == drafts


@pytest.mark.parametrize("columns", [None, [2, 0, 3]])
@pytest.mark.parametrize(("rule", "branches"), [("rejection", ()), ("rejection", (3, 2)), ("block", ())])
def test_sampling_law_of_the_whole_loop(
    columns: list[int] | None, branches: tuple[int, ...], rule: str
) -> None:
    """Chi-square of three-token texts against the exact law by enumeration."""
    vocab, prompt, counts = 4, [1, 2, 1, 3, 2], np.zeros((4,) * 3)
    params = SamplingParams(temperature=0.9, top_p=0.95, repetition_penalty=1.2)
    target = target_model(vocab, sharpness=1.0)
    asked, _ = drafter(target, 0.7, columns, sharpness=1.0)
    engine = drafted(target, asked, rule=lambda: Fixed(3, branches))
    accepted = 0
    for first in range(0, 1500, 10):
        seeds = [replace(params, seed=seed) for seed in range(first, first + 10)]
        generations = [begin(prompt, 3, params=p, rule=rule_for(p, rule)) for p in seeds]
        run(engine, *generations)
        for generation in generations:
            counts[tuple(output(generation))] += 1
        accepted += sum(g.metrics.num_accepted_tokens for g in generations)
    assert accepted > 300
    check_law(counts, target, prompt, params)
