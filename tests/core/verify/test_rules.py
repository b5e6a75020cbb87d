"""Each acceptance rule against the exact law of plain decoding, by enumeration of every random choice.

The sampler is replaced by one that walks through all its branches with their weights, so a whole
round (draw the draft, verify, correct) gives its law in float64 instead of a sample from it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import array_api_strict
import numpy as np
import pytest
from support.laws.acceptance_law import (
    DRAFT,
    PARAMS,
    PROMPT,
    RULES,
    SAMPLED,
    TARGET,
    VOCAB,
    assert_same_law,
    branches,
    committed,
    drafting,
    law_of_round,
    oracle,
    verify,
)

from specport.core import reference
from specport.core.sampling.params import SamplingParams
from specport.core.sampling.sampler import Sampler
from specport.core.tree import TokenTree
from specport.core.verify.rules import (
    BlockVerification,
    Greedy,
    Matching,
    RejectionSampling,
    Verdict,
    rule_for,
)
from specport.core.verify.scores import TargetScores
from specport.errors import InvalidInput

CHAINS = [("r", "r"), ("d", "d"), ("r", "d"), ("d", "r")]
TREES = [("rr", "r"), ("rrr",), ("dd", "d"), ("rd", "r"), ("dr", "d"), ("drr",), ("rdr",), ("rrd",)]


@pytest.mark.parametrize("params", PARAMS, ids=str)
@pytest.mark.parametrize("pattern", CHAINS, ids="-".join)
@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.name)
def test_chain_has_the_law_of_plain_decoding(rule, pattern, params) -> None:
    law, _ = law_of_round(rule, drafting(*pattern), 2, params)
    assert_same_law(law, reference.plain_law(oracle(params), PROMPT, 3))


@pytest.mark.parametrize("params", [PARAMS[0], PARAMS[2], PARAMS[5]], ids=str)
@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("pattern", TREES, ids="-".join)
def test_tree_has_the_law_of_plain_decoding(pattern, replacement, params) -> None:
    depth = len(pattern)
    law, _ = law_of_round(RejectionSampling(), drafting(*pattern, replacement=replacement), depth, params)
    assert_same_law(law, reference.plain_law(oracle(params), PROMPT, depth + 1))


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.name)
def test_stopping_behind_an_unlikely_token_keeps_the_law(rule) -> None:
    propose = drafting("r", "r", "r", stop_below=0.4)
    law, _ = law_of_round(rule, propose, 3, SAMPLED)
    assert_same_law(law, reference.plain_law(oracle(SAMPLED), PROMPT, 4))


@pytest.mark.parametrize("params", [PARAMS[3], PARAMS[6]], ids=str)
@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.name)
def test_several_rounds_have_the_law_of_plain_decoding(rule, params) -> None:
    def run(sampler: Sampler) -> tuple[int, ...]:
        text = [*PROMPT]
        while (left := len(PROMPT) + 3 - len(text)) > 0:
            tree = drafting("r", "r")(text, left - 1, sampler)
            text += committed(tree, verify(rule, tree, text, sampler))
        return tuple(text[len(PROMPT) :])

    law: Counter[tuple[int, ...]] = Counter()
    for text, weight in branches(run, params):
        law[text] += weight
    assert_same_law(law, reference.plain_law(oracle(params), PROMPT, 3))


@pytest.mark.parametrize("pattern", [("r", "r"), ("d", "r"), ("r", "r", "r")], ids="-".join)
def test_block_verification_keeps_more_than_token_by_token(pattern) -> None:
    _, block = law_of_round(BlockVerification(), drafting(*pattern), len(pattern), SAMPLED)
    _, token = law_of_round(RejectionSampling(), drafting(*pattern), len(pattern), SAMPLED)
    assert block > token + 1e-3


def test_expected_length_of_one_drawn_token_is_the_overlap() -> None:
    p, q = oracle(SAMPLED)(PROMPT), oracle(SAMPLED, DRAFT)(PROMPT)
    _, mean = law_of_round(RejectionSampling(), drafting("r"), 1, SAMPLED)
    assert mean == pytest.approx(1 + np.minimum(p, q).sum())


def test_expected_length_with_siblings() -> None:
    """The textbook values: reject wrongly often, and the law may still hold, but not these."""
    p, q = oracle(SAMPLED)(PROMPT), oracle(SAMPLED, DRAFT)(PROMPT)
    first = np.minimum(p, q).sum()
    rest = np.maximum(p - q, 0) / np.maximum(p - q, 0).sum()
    _, mean = law_of_round(RejectionSampling(), drafting("rr"), 1, SAMPLED)
    assert mean == pytest.approx(1 + first + (1 - first) * np.minimum(rest, q).sum())
    top = q.argmax()
    rest = np.where(np.arange(VOCAB) == top, 0, p) / (1 - p[top])
    _, mean = law_of_round(RejectionSampling(), drafting("dr", replacement=False), 1, SAMPLED)
    assert mean == pytest.approx(1 + p[top] + (1 - p[top]) * np.minimum(rest, q).sum())


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.name)
@pytest.mark.parametrize("pattern", [("r", "r"), ("rdr",)], ids="-".join)
@pytest.mark.parametrize("library", ["array_api_strict", "torch"])
def test_other_array_libraries(rule, pattern, library) -> None:
    xp = pytest.importorskip(library)
    propose = drafting(*pattern, replacement=False, xp=xp)
    law, _ = law_of_round(rule, propose, len(pattern), PARAMS[-1], xp=xp)
    assert_same_law(law, reference.plain_law(oracle(PARAMS[-1]), PROMPT, len(pattern) + 1))


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.name)
@pytest.mark.parametrize("width", [VOCAB - 1, VOCAB + 2])
def test_draft_padded_to_another_width(rule, width) -> None:
    q = np.full(width, 1.0 / width)

    def propose(context: Sequence[int], depth: int, sampler: Sampler) -> TokenTree:
        return TokenTree.chain([sampler.draw(q)], probs=[q])

    law, _ = law_of_round(rule, propose, 1, SAMPLED)
    assert_same_law(law, reference.plain_law(oracle(SAMPLED), PROMPT, 2))


def test_without_replacement_once_the_draft_has_run_dry() -> None:
    q = np.asarray([0.0, 1.0, 0.0])  # the second sibling cannot have been drawn from q
    tree = TokenTree((1, 0), (-1, -1), (q, q), replacement=False)
    law, _ = law_of_round(RejectionSampling(), lambda *_: tree, 1, SAMPLED)
    assert_same_law(law, reference.plain_law(oracle(SAMPLED), PROMPT, 2))


def test_real_random_stream() -> None:
    """Chi-square of 2-token texts, 6,000 runs with a fixed seed; the oracle goes through the same test."""
    expected = reference.plain_law(oracle(SAMPLED), PROMPT, 2)
    sampler, rng = Sampler(SamplingParams(temperature=1.0, seed=5)), np.random.default_rng(6)
    runs: dict[str, Counter[tuple[int, ...]]] = {"rule": Counter(), "reference": Counter()}
    for _ in range(6000):
        text = [*PROMPT]
        while len(text) < 4:
            tree = drafting("r")(text, 1, sampler)
            text += committed(tree, verify(RejectionSampling(), tree, text, sampler))
        runs["rule"][tuple(text[2:4])] += 1
        target, draft = oracle(SAMPLED), oracle(SAMPLED, DRAFT)
        runs["reference"][reference.speculative(target, draft, PROMPT, 2, 1, rng)] += 1
    for seen in runs.values():
        chi2 = sum((seen[t] - 6000 * e) ** 2 / (6000 * e) for t, e in expected.items())
        assert chi2 < 26.1  # 8 degrees of freedom, p = 0.001


def test_greedy_follows_the_argmax() -> None:
    tree = TokenTree((0, 1, 2, 0, 1), (-1, -1, 1, 2, 2))
    best = [1, 0, 2, 1, 0, 0]  # after the root token and after each node
    logits = np.eye(VOCAB)[best]
    sampler = Sampler(SamplingParams())
    for xp in (np, array_api_strict):
        scores = TargetScores(tree, xp.asarray(logits), sampler, PROMPT)
        assert scores.argmax() == best
        assert Greedy().accept(tree, scores, sampler) == Verdict((1, 2, 4), 0)
    assert verify(Greedy(), TokenTree(), PROMPT, sampler) == Verdict((), int(TARGET[PROMPT].argmax()))


@pytest.mark.parametrize("xp", [np, array_api_strict], ids=["numpy", "strict"])
def test_greedy_applies_the_penalty_to_each_candidate_prefix(xp) -> None:
    sampler = Sampler(SamplingParams(repetition_penalty=2.0))
    logits = xp.asarray(np.asarray([[1.0, 3.0, 2.9], [1.0, 3.0, 2.0]]))
    tree = TokenTree.chain([1])
    scores = TargetScores(tree, logits, sampler, (0,))  # 1 is new in row 0, drafted before row 1
    assert Greedy().accept(tree, scores, sampler) == Verdict((0,), 2)
    assert scores.argmax() == [1, 2]


def test_rules_at_temperature_0_agree_with_greedy() -> None:
    sampler = Sampler(SamplingParams())
    for tokens in np.ndindex(VOCAB, VOCAB):
        tree = TokenTree.chain(tokens)
        expected = verify(Greedy(), tree, PROMPT, sampler)
        assert verify(RejectionSampling(), tree, PROMPT, sampler) == expected
        drawn = TokenTree.chain(tokens, probs=[np.eye(VOCAB)[t] for t in tokens])
        assert verify(BlockVerification(), drawn, PROMPT, sampler) == expected


def test_rows_behind_a_rejection_are_not_processed() -> None:
    rows: list[int] = []

    class Counting(Sampler):
        def distribution(self, logits, prefix):
            rows.append(len(prefix))
            return super().distribution(logits, prefix)

    sampler = Counting(SAMPLED)
    never = np.full((3, VOCAB), -np.inf)
    never[:, 2] = 0.0
    tree = TokenTree.chain([0, 1])
    assert RejectionSampling().accept(tree, TargetScores(tree, never, sampler, PROMPT), sampler).path == ()
    assert rows == [len(PROMPT)]


def test_residual_of_rounding_error_falls_back_to_the_target() -> None:
    class Refusing(Sampler):
        def accepts(self, probability: float) -> bool:
            return False

    p = np.asarray([0.2, 0.3, 0.5])
    logits = np.log(np.stack([p, p]))
    q = Sampler(SAMPLED).distribution(logits[0], PROMPT)
    tree = TokenTree.chain([2], probs=[q])
    for rule in RULES:
        seen = set()
        sampler = Refusing(SamplingParams(temperature=1.0, seed=0))
        for _ in range(50):
            seen.add(rule.accept(tree, TargetScores(tree, logits, sampler, PROMPT), sampler).token)
        assert seen == {0, 1, 2}


def test_rule_for() -> None:
    assert isinstance(rule_for(SamplingParams()), Greedy)
    assert isinstance(rule_for(SamplingParams(), "block"), Greedy)
    assert isinstance(rule_for(SAMPLED), RejectionSampling)
    assert isinstance(rule_for(SAMPLED, "block"), BlockVerification)
    assert isinstance(rule_for(SAMPLED, "match"), Matching)
    with pytest.raises(InvalidInput, match="typical"):
        rule_for(SAMPLED, "typical")
