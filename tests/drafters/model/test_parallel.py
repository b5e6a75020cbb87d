"""Several draft tokens from one pass of a model: the text and its law are those of plain decoding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.generations import PROMPT, begin, drafted, run
from support.laws.sampling_law import check_law
from support.toys.toy_model import ToyCutModel, ToyModel

from specport.core.planning.step_costs import StepCosts
from specport.core.policies.length_rules import Fixed, Threshold, make_length_rule
from specport.core.ports import DraftRequest, Plan
from specport.core.sampling.params import SamplingParams
from specport.core.sampling.sampler import Sampler
from specport.core.verify.rules import rule_for
from specport.drafters.model.kv_cache import BESIDE_TAIL
from specport.drafters.model.parallel import ParallelDrafter
from specport.models.kinds.bigrams import PAIR, Bigrams

MASK, TEMPERATURES = 11, (1.0, 1.5, 0.8, 2.0)
PROMPTS = [PROMPT, [1], [7, 7, 7], PROMPT[::-1]]


def pairs(vocab: int) -> Bigrams:
    """Return gains for pairs of which some are of ids that neither draft nor target has."""
    rng = np.random.default_rng(2)
    found = np.array([(a, b, 0.0) for a in range(vocab + 2) for b in range(0, vocab + 2, 2)], dtype=PAIR)
    found["gain"] = rng.uniform(0.0, 4.0, len(found))
    return Bigrams(found)


def gains(bigrams: Bigrams, before: int, vocab: int) -> np.ndarray:
    """Return [vocab] what is added behind a token."""
    found = np.zeros(vocab, dtype=np.float32)
    for pair in bigrams.pairs:
        if pair["before"] == before and pair["token"] < vocab:
            found[pair["token"]] = pair["gain"]
    return found


def draft_model(**options: Any) -> ToyModel:
    """Return a toy that knows MASK, with a column for it that is always the likeliest."""
    toy = ToyModel(**{"vocab": MASK + 1, "noise": 0.4, **options})
    toy.table[:, :, MASK] = 50.0
    return toy


def drafter(model: ToyModel, **options: Any) -> ParallelDrafter:
    return ParallelDrafter(model, 11, MASK, TEMPERATURES, **options)


def request(context: list[int], plan: Plan, key: int = 0, **params: Any) -> DraftRequest:
    return DraftRequest(key, context, plan, Sampler(SamplingParams(**params)))


def rows_of(model: ToyModel, context: list[int], depth: int) -> list[np.ndarray]:
    """Return the logits of the drafts behind a context, from the table itself, without MASK's column."""
    text = [0, *context, *[MASK] * (depth - 1)]
    return [model.table[text[i - 1], text[i]][:MASK] for i in range(len(context), len(text))]


def test_drafts_are_the_last_rows_of_one_pass() -> None:
    model, context = draft_model(), [1, 2, 3]
    asked = drafter(model)
    (tree,) = asked.propose([request(context, Plan(4))])
    assert list(tree.tokens) == [int(row.argmax()) for row in rows_of(model, context, 4)]
    assert tree.is_chain and model.steps == [1] and model.widths == [3 + 3]
    (handle,) = model.handles
    assert handle.tokens == context  # no MASK stays in the cache
    context += [*tree.tokens[:2], 5]
    (tree,) = asked.propose([request(context, Plan(9))])  # no deeper than one pass is
    assert list(tree.tokens) == [int(row.argmax()) for row in rows_of(model, context, 4)]
    assert model.widths == [6, 3 + 3] and handle.tokens == context
    assert asked.parallel.depth == 4 and asked.behind(request([*context, 1], Plan(4))) == 1


def test_tokens_are_ranked_by_the_token_before() -> None:
    model, context, bigrams = draft_model(), [1, 2, 3], pairs(MASK)
    asked = drafter(model, bigrams=bigrams)
    (tree,) = asked.propose([request(context, Plan(4, stop=Threshold(0.0)))])
    first, *others = rows_of(model, context, 4)
    chain = [int(first.argmax())]  # the model has read the token before
    for row in others:
        chain.append(int((row + gains(bigrams, chain[-1], MASK)).argmax()))
    assert list(tree.tokens) == chain
    assert chain != [int(row.argmax()) for row in rows_of(model, context, 4)]
    last = np.exp((others[-1] + gains(bigrams, chain[-2], MASK)).astype(np.float64) / TEMPERATURES[3])
    assert tree.confidence[3] == pytest.approx(last[chain[-1]] / last.sum(), rel=1e-4)
    # Each branch is ranked by its own token.
    (tree,) = asked.propose([request(context, Plan(2, (3, 1)))])
    assert len(tree.tokens) == 6
    for node in range(3, 6):
        before = tree.tokens[tree.parents[node]]
        assert tree.tokens[node] == int((others[0] + gains(bigrams, before, MASK)).argmax())


@pytest.mark.parametrize("length", [1, BESIDE_TAIL, BESIDE_TAIL + 1, 600])
def test_a_long_context_is_read_before_the_pass(length: int) -> None:
    model, context = draft_model(max_context=2048), [i % 7 for i in range(length)]
    (tree,) = drafter(model, window=1024).propose([request(context, Plan(4))])
    assert list(tree.tokens) == [int(row.argmax()) for row in rows_of(model, context, 4)]
    assert model.widths[-1] == 3 + (length if length <= BESIDE_TAIL else 1)
    assert model.handles[0].tokens == context


def test_confidences_are_probabilities_at_the_depths_temperature() -> None:
    model, context = draft_model(), [4, 9]
    plan = Plan(4, stop=Threshold(0.0))
    (tree,) = drafter(model).propose([request(context, plan)])
    for row, temperature, token, confidence in zip(
        rows_of(model, context, 4), TEMPERATURES, tree.tokens, tree.confidence, strict=True
    ):
        weights = np.exp(row.astype(np.float64) / temperature)
        assert confidence == pytest.approx(weights[token] / weights.sum(), rel=1e-4)


def test_a_stop_rule_cuts_the_draft_not_the_pass() -> None:
    model, context = draft_model(), [4, 9]
    (whole,) = drafter(model).propose([request(context, Plan(4, stop=Threshold(0.0)))])
    least = sorted(whole.confidence)[1]
    (cut,) = drafter(model).propose([request(context, Plan(4, stop=Threshold(least)))])
    first = next(i for i, confidence in enumerate(whole.confidence) if confidence < least)
    assert cut.tokens == whole.tokens[: first + 1]  # the token itself stays, as in other drafts
    assert model.widths[-1] == len(context) + 3


@pytest.mark.parametrize(("change", "kept"), [(0.6, True), (0.05, False)])
def test_passes_keep_their_width_where_a_change_costs_more(change: float, kept: bool) -> None:
    """A token adds 0.02 to a step, and at most four are added."""
    costs = StepCosts((1, 2, 16), (0,), ((1.0, 1.02, 1.3),), change, measured=True)
    target, model = ToyModel(), draft_model()
    engine = drafted(target, drafter(model, costs=costs), rule=lambda: Fixed(4))
    generation = begin()
    assert run(engine, generation) == [target.greedy(PROMPT, 40)]
    assert generation.metrics.num_accepted_tokens > 0
    widths = {*model.widths[1:-4]}  # the first pass reads the prompt, the last ones are short
    assert (widths == {8}) == kept and (len(widths) > 1) != kept
    full = draft_model(max_context=24)
    run(drafted(target, drafter(full, costs=costs), rule=lambda: Fixed(4)), *(begin(p) for p in PROMPTS))
    assert full.num_open == 0


@pytest.mark.parametrize("rule", ["fixed", "heuristic", "confidence"])
@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("bigrams", [None, pairs(MASK)], ids=["plain", "ranked"])
def test_greedy_text_equals_plain_decoding(rule: str, batch: bool, bigrams: Bigrams | None) -> None:
    target, model = ToyModel(batch=batch), draft_model(batch=batch)
    engine = drafted(target, drafter(model, bigrams=bigrams), rule=lambda: make_length_rule(rule))
    generations = [begin(p) for p in PROMPTS]
    assert run(engine, *generations) == [target.greedy(p, 40) for p in PROMPTS]
    assert sum(g.metrics.num_accepted_tokens for g in generations) > 0
    assert target.num_open == model.num_open == 0
    if batch:
        assert max(model.steps) == len(PROMPTS)


def test_branches_are_children_from_the_same_pass() -> None:
    target, model = ToyModel(), draft_model()
    engine = drafted(target, drafter(model), rule=lambda: Fixed(3, (3, 2)))
    generation = begin()
    assert run(engine, generation) == [target.greedy(PROMPT, 40)]
    assert generation.metrics.num_accepted_tokens > 0


def test_a_full_cache_of_the_draft_changes_no_text() -> None:
    target, model = ToyModel(), draft_model(cache_tokens=40)
    engine = drafted(target, drafter(model))
    assert run(engine, *(begin(p) for p in PROMPTS)) == [target.greedy(p, 40) for p in PROMPTS]
    assert model.num_open == 0


def test_a_cut_head_gets_the_tokens_of_the_text() -> None:
    keep = [8, 3, 1, 10, 6]
    target, bigrams = ToyModel(), pairs(MASK)
    model = ToyCutModel(keep, vocab=MASK + 1, noise=0.4)
    known = [*keep, 4, 9]
    for ranked in (False, True):
        asked = ParallelDrafter(model, 11, MASK, TEMPERATURES, keep, bigrams=bigrams if ranked else None)
        (tree,) = asked.propose([request([4, 9, 4], Plan(4))])
        chain: list[int] = []
        for row in rows_of(model, [4, 9, 4], 4):
            scores = row + gains(bigrams, chain[-1], MASK) if ranked and chain else row
            chain.append(max(known, key=lambda t, scores=scores: scores[t]))
        assert list(tree.tokens) == chain
        assert run(drafted(target, asked), begin()) == [target.greedy(PROMPT, 40)]


@pytest.mark.parametrize("ranked", [False, True])
@pytest.mark.parametrize("kind", ["whole", "cut"])
@pytest.mark.parametrize(("rule", "branches"), [("rejection", ()), ("rejection", (3, 2)), ("block", ())])
def test_sampling_law_of_the_whole_loop(
    kind: str, branches: tuple[int, ...], rule: str, ranked: bool
) -> None:
    """Chi-square of three-token texts against the exact law by enumeration."""
    vocab, prompt, counts = 4, [1, 2, 1, 3, 2], np.zeros((4,) * 3)
    params = SamplingParams(temperature=0.9, top_p=0.95, repetition_penalty=1.2)
    target, model = ToyModel(vocab, sharpness=1.0), ToyModel(vocab + 1, sharpness=1.0)
    model.table[:vocab, :vocab, :vocab] = ToyModel(vocab, sharpness=1.0, noise=0.7).table
    keep = [2, 0, 3] if kind == "cut" else None
    if keep is not None:
        model.table = model.table[:, :, keep]
    bigrams = pairs(vocab) if ranked else None
    asked = ParallelDrafter(model, vocab, vocab, (1.0, 2.0, 0.7), keep, bigrams=bigrams)
    engine = drafted(target, asked, rule=lambda: Fixed(3, branches))
    accepted = 0
    for first in range(0, 1500, 10):
        seeds = [replace(params, seed=seed) for seed in range(first, first + 10)]
        generations = [begin(prompt, 3, params=p, rule=rule_for(p, rule)) for p in seeds]
        for text in run(engine, *generations):
            counts[tuple(text)] += 1
        accepted += sum(g.metrics.num_accepted_tokens for g in generations)
    assert accepted > 300
    check_law(counts, target, prompt, params)
