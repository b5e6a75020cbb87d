"""Drafts by a module for multi-token prediction: the text and its law are those of plain decoding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.generations import PROMPT, begin, drafted, output, run
from support.laws.sampling_law import check_law
from support.toys.toy_model import ToyModel
from support.toys.toy_mtp import ToyMtp

from specport.core.engine import Engine
from specport.core.planning.planner import Planner
from specport.core.planning.row_plan import Source
from specport.core.planning.step_costs import StepCosts
from specport.core.policies.length_rules import Fixed, make_length_rule
from specport.core.ports import HEAD_INPUT, DraftRequest, Needs, Outcome, Plan, Prefilled
from specport.core.sampling.params import SamplingParams
from specport.core.sampling.sampler import Sampler
from specport.core.tree import TokenTree
from specport.core.verify.rules import rule_for
from specport.drafters.model import mtp
from specport.drafters.model.mtp import MtpDrafter

PROMPTS = [PROMPT, [1, 2], [7, 7, 7], PROMPT[::-1]]


def target_model(vocab: int = 11, **options: Any) -> ToyModel:
    return ToyModel(vocab, hidden_layers=(HEAD_INPUT,), **options)


def drafter(target: ToyModel, *args: Any, **options: Any) -> tuple[MtpDrafter, ToyMtp]:
    module = ToyMtp(target, *args, **options)
    return MtpDrafter(module, target.vocab_size), module


def states(target: ToyModel, tokens: list[int]) -> dict[int, np.ndarray]:
    return {HEAD_INPUT: np.stack([target.hidden_row(HEAD_INPUT, token) for token in tokens])}


def read(asked: MtpDrafter, target: ToyModel, tokens: list[int], key: int = 0, start: int = 0) -> None:
    """Let a drafter know that the target has read these tokens of a prompt."""
    asked.prefilled([Prefilled(key, start, tokens, states(target, tokens))])


def request(context: list[int], plan: Plan, key: int = 0, **params: Any) -> DraftRequest:
    return DraftRequest(key, context, plan, Sampler(SamplingParams(**params)))


def chain(module: ToyMtp, context: list[int], depth: int) -> list[int]:
    text = [*context]
    for _ in range(depth):
        text.append(int(module.table[text[-2], text[-1]].argmax()))
    return text[len(context) :]


def test_a_chain_reads_the_prompt_and_its_own_states() -> None:
    target = target_model()
    asked, module = drafter(target)
    assert asked.needs == Needs(hidden=True, prompt=True)
    read(asked, target, [4, 9])
    read(asked, target, [2, 6], start=2)  # the second part of the prompt
    context = [4, 9, 2, 6, 8]
    assert asked.behind(request(context, Plan(5))) == len(context)
    (tree,) = asked.propose([request(context, Plan(5))])
    assert list(tree.tokens) == chain(module, [6, 8], 5) and tree.is_chain
    assert set(tree.sources) == {"mtp"}
    assert module.widths == [4, 1, 1, 1, 1]  # entries for 9, 2, 6, 8, then each drafted token but the last


@pytest.mark.parametrize("path", [(), (0,), (0, 2)])
def test_after_a_round_drafted_entries_are_replaced(path: tuple[int, ...]) -> None:
    target = target_model()
    asked, module = drafter(target)
    read(asked, target, [0, 1, 2, 3])
    asked.propose([request([0, 1, 2, 3, 8], Plan(3))])
    tree = TokenTree((5, 7, 3), (-1, 0, 0))
    hidden = states(target, [8, *tree.tokens])
    asked.observe([Outcome(0, tree, path, context=4, root=8, hidden=hidden)])
    hidden[HEAD_INPUT][:] = 0.0  # the target's next step overwrites them
    context = [0, 1, 2, 3, 8, *(tree.tokens[node] for node in path), 10]
    module.widths.clear()
    assert asked.behind(request(context, Plan(2))) == 1 + len(path)
    (drafts,) = asked.propose([request(context, Plan(2))])
    assert list(drafts.tokens) == chain(module, context[-2:], 2)
    assert module.widths == [1 + len(path), 1]


def test_nothing_is_drafted_without_the_states_of_the_last_token() -> None:
    target = target_model()
    asked, _ = drafter(target)
    assert not len(asked.propose([request([4, 9, 2], Plan(3))])[0])  # nothing was read
    read(asked, target, [4, 9])
    assert not len(asked.propose([request([4, 9, 2, 6], Plan(3))])[0])  # 2 was read without states
    assert len(asked.propose([request([4, 9, 2], Plan(3))])[0]) == 3
    first, second = (asked.propose([request([4, 9, 2], Plan(3))])[0] for _ in range(2))
    assert first == second and len(first) == 3  # the target refused the row in between
    asked.forget(0)
    asked.prefilled([Prefilled(1, 0, [4, 9])])  # no states came along
    assert not len(asked.propose([request([4, 9, 2], Plan(3), key=1)])[0])
    read(asked, target, [4, 9], key=2, start=30)  # a cache that was kept holds what is before
    assert len(asked.propose([request([1] * 30 + [4, 9, 2], Plan(3), key=2)])[0]) == 3


def test_long_prompts_are_read_beside_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mtp, "PREFILL_CHUNK", 8)
    target = target_model()
    asked, module = drafter(target)
    text = [int(token) for token in np.random.default_rng(0).integers(0, 11, 31)]
    read(asked, target, text[:8])
    assert not module.widths  # short so far
    read(asked, target, text[8:16], start=8)
    read(asked, target, text[16:18], start=16)
    assert module.widths == [15, 2]
    asked.observe([Outcome(0, TokenTree(), (), context=18, root=text[18], hidden=states(target, [text[18]]))])
    assert module.widths == [15, 2]  # a few tokens wait for the next draft
    assert asked.behind(request(text[:20], Plan(2))) == 2
    (tree,) = asked.propose([request(text[:20], Plan(2))])
    assert list(tree.tokens) == chain(module, text[18:20], 2)
    for position in range(19, 30):  # rounds in which others draft
        hidden = states(target, [text[position]])
        asked.observe([Outcome(0, TokenTree(), (), context=position, root=text[position], hidden=hidden)])
    assert module.widths[-1] == 8
    (tree,) = asked.propose([request(text, Plan(2))])
    assert list(tree.tokens) == chain(module, text[-2:], 2)


@pytest.mark.parametrize("rule", ["fixed", "heuristic", "confidence"])
@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("chunk", [512, 4])
def test_greedy_text_equals_plain_decoding(
    rule: str, batch: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mtp, "PREFILL_CHUNK", chunk)
    target = target_model(batch=batch)
    asked, module = drafter(target, batch=batch)
    engine = drafted(target, asked, rule=lambda: make_length_rule(rule))
    generations = [begin(p) for p in PROMPTS]
    assert run(engine, *generations) == [target.greedy(p, 40) for p in PROMPTS]
    accepted = sum(g.metrics.num_accepted_tokens for g in generations)
    assert 0 < accepted < sum(g.metrics.num_draft_tokens for g in generations)
    assert target.num_open == module.num_open == 0 and not asked._states._texts and not asked._states._nodes
    assert max(module.steps) == (len(PROMPTS) if batch else 1)


def test_trees_are_drafted_from_the_states_of_their_nodes() -> None:
    target = target_model()
    asked, module = drafter(target)
    read(asked, target, [4, 9])
    (tree,) = asked.propose([request([4, 9, 2], Plan(3, (2, 2)))])
    for node, token in enumerate(tree.tokens):
        path = [9, 2, *(tree.tokens[i] for i in tree.path(node)[:-1])]
        width = 2 if len(path) < 4 else 1
        assert token in np.argsort(module.table[path[-2], path[-1]])[-width:]
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


@pytest.mark.parametrize("cache_tokens", [3, 20, 60])
def test_a_full_cache_of_the_module_costs_drafts_only(cache_tokens: int) -> None:
    target = target_model()
    asked, module = drafter(target, cache_tokens=cache_tokens)
    generations = [begin(p) for p in PROMPTS]
    assert run(drafted(target, asked), *generations) == [target.greedy(p, 40) for p in PROMPTS]
    assert module.num_open == 0 and sum(g.metrics.num_draft_tokens for g in generations) > 0


def test_the_planner_drafts_where_the_module_is_cheap() -> None:
    target = target_model()
    steps = StepCosts.prior({1: 1.0, 2: 1.0, 4: 1.1, 8: 1.4, 16: 2.0})
    for assumed, drafts in ((0.05, True), (3.0, False)):
        asked, _ = drafter(target, 0.1)
        planner = Planner([Source(asked, StepCosts.prior({1: 1.0}), (), assumed)], steps)
        generation = begin()
        (tokens,) = run(Engine(target, planner), generation)
        assert tokens == target.greedy(PROMPT, 40)
        assert (generation.metrics.num_accepted_tokens > 20) == drafts


@pytest.mark.parametrize(("rule", "branches"), [("rejection", ()), ("rejection", (3, 2)), ("block", ())])
def test_sampling_law_of_the_whole_loop(branches: tuple[int, ...], rule: str) -> None:
    """Chi-square of three-token texts against the exact law by enumeration."""
    vocab, prompt, counts = 4, [1, 2, 1, 3, 2], np.zeros((4,) * 3)
    params = SamplingParams(temperature=0.9, top_p=0.95, repetition_penalty=1.2)
    target = target_model(vocab, sharpness=1.0)
    asked, _ = drafter(target, 0.7, sharpness=1.0)
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
