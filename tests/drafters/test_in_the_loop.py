"""Every kind of drafter in the whole loop: same text and same law as plain decoding, whatever is drafted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support.generations import PROMPT, begin, drafted, run
from support.laws.sampling_law import check_law
from support.toys.toy_model import ToyModel

from specport.core.policies.length_rules import Fixed, make_length_rule
from specport.core.ports import Drafter
from specport.core.sampling.params import SamplingParams
from specport.core.verify.rules import rule_for
from specport.drafters.model.drafter import ModelDrafter
from specport.drafters.retrieval.history import History
from specport.drafters.retrieval.ngram import NgramDrafter
from specport.drafters.retrieval.suffix import SuffixDrafter

CUT = [8, 3, 1, 10, 6, 9, 4]
PROMPTS = [PROMPT, [1], [7, 7, 7], PROMPT[::-1]]


def drafters(kind: str, target: ToyModel, noise: float = 0.4) -> list[Drafter]:
    draft, small = ModelDrafter(ToyModel(noise=noise), target.vocab_size), ToyModel(noise=noise)
    small.table = small.table[:, :, CUT]
    return {
        "ngram": [NgramDrafter()],
        "model": [draft],
        "cut": [ModelDrafter(small, target.vocab_size, CUT)],
        "ngram|model": [NgramDrafter(), draft],
        "suffix": [SuffixDrafter(History())],
    }[kind]


@pytest.mark.parametrize("kind", ["ngram", "suffix", "model", "cut", "ngram|model"])
@pytest.mark.parametrize("rule", ["fixed", "heuristic", "confidence"])
@pytest.mark.parametrize("batch", [True, False])
def test_greedy_text_equals_plain_decoding(kind: str, rule: str, batch: bool) -> None:
    target = ToyModel(batch=batch)
    engine = drafted(target, *drafters(kind, target), rule=lambda: make_length_rule(rule))
    assert run(engine, *(begin(p) for p in PROMPTS)) == [target.greedy(p, 40) for p in PROMPTS]
    assert target.num_open == 0


@pytest.mark.parametrize("kind", ["ngram", "suffix", "model", "cut"])
@pytest.mark.parametrize("branches", [(2,), (3, 2), (2, 2, 2), (1, 3)])
def test_trees_give_the_same_text(kind: str, branches: tuple[int, ...]) -> None:
    target = ToyModel()
    engine = drafted(target, *drafters(kind, target, 0.8), rule=lambda: Fixed(4, branches))
    generation = begin()
    assert run(engine, generation) == [target.greedy(PROMPT, 40)]
    assert generation.metrics.num_accepted_tokens > 0


@pytest.mark.parametrize(("draft_vocab", "width"), [(11, 16), (16, 11), (11, 13)])
def test_padded_vocabularies_of_different_size(draft_vocab: int, width: int) -> None:
    target = ToyModel(width=13)
    engine = drafted(target, ModelDrafter(ToyModel(width=max(width, 11), noise=0.3), target.vocab_size))
    assert run(engine, begin()) == [target.greedy(PROMPT, 40)]
    assert max(run(engine, begin(params=SamplingParams(temperature=1.0, seed=draft_vocab)))[0]) < 13


@pytest.mark.parametrize("kind", ["ngram", "suffix", "model", "ngram|model"])
def test_in_a_full_cache_each_text_is_as_it_is_alone(kind: str) -> None:
    target = ToyModel(cache_tokens=72, max_context=50)
    generations = [begin(p, 30) for p in PROMPTS]
    engine = drafted(target, *drafters(kind, target))
    assert run(engine, *generations) == [target.greedy(p, 30) for p in PROMPTS]
    assert sum(g.metrics.num_preemptions for g in generations) > 0 and target.num_open == 0


@pytest.mark.parametrize("kind", ["ngram", "model", "cut", "ngram|model"])
@pytest.mark.parametrize(("rule", "branches"), [("rejection", (3, 2)), ("block", ())])
def test_sampling_law_of_the_whole_loop(kind: str, branches: tuple[int, ...], rule: str) -> None:
    """Chi-square of three-token texts against the exact law by enumeration."""
    vocab, prompt, counts = 4, [1, 2, 1, 3, 2], np.zeros((4,) * 3)
    params = SamplingParams(temperature=0.9, top_p=0.95, repetition_penalty=1.2)
    target, draft = ToyModel(vocab, sharpness=1.0), ToyModel(vocab, sharpness=1.0, noise=0.7)
    ngram, model = NgramDrafter(min_ngram=1), ModelDrafter(draft, vocab)
    if kind == "cut":
        draft.table = draft.table[:, :, [2, 0, 3]]
        model = ModelDrafter(draft, vocab, [2, 0, 3])
    asked = {"ngram": [ngram], "ngram|model": [ngram, model]}.get(kind, [model])
    engine = drafted(target, *asked, rule=lambda: Fixed(3, branches))
    for first in range(0, 1500, 10):
        seeds = [replace(params, seed=seed) for seed in range(first, first + 10)]
        for text in run(engine, *(begin(prompt, 3, params=p, rule=rule_for(p, rule)) for p in seeds)):
            counts[tuple(text)] += 1
    check_law(counts, target, prompt, params)
