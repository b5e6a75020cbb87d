"""Gives the exact law of a round of speculation, by enumeration of every random choice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from specport.core import reference
from specport.core.sampling.params import SamplingParams
from specport.core.sampling.processors import LogitsProcessor, Prefix
from specport.core.sampling.sampler import Sampler
from specport.core.tree import TokenTree
from specport.core.verify.rules import BlockVerification, RejectionSampling, Verdict
from specport.core.verify.scores import TargetScores

VOCAB = 3
PROMPT = (2, 0)
_rng = np.random.default_rng(7)
# Order-2 Markov models: [last but one, last] -> logits [vocab]
TARGET = _rng.normal(size=(VOCAB, VOCAB, VOCAB)) * 1.5
DRAFT = TARGET * 0.5 + _rng.normal(size=(VOCAB, VOCAB, VOCAB))
SAMPLED = SamplingParams(temperature=1.0)
PARAMS = [
    SAMPLED,
    SamplingParams(temperature=0.6),
    SamplingParams(temperature=1.3, top_k=2),
    SamplingParams(temperature=1.0, top_p=0.8),
    SamplingParams(temperature=1.5, min_p=0.25),
    SamplingParams(temperature=1.0, repetition_penalty=1.8),
    SamplingParams(temperature=0.8, top_k=2, top_p=0.9, repetition_penalty=1.4),
]
Propose = Callable[[Sequence[int], int, Sampler], TokenTree]


def oracle(params: SamplingParams, table: np.ndarray = TARGET) -> reference.LanguageModel:
    """The processed model, token by token and independent of specport.core.sampling.sampler."""

    def model(prefix: tuple[int, ...]) -> np.ndarray:
        scores = [float(x) for x in table[prefix[-2], prefix[-1]]]
        for t in set(prefix):
            scores[t] *= params.repetition_penalty ** (1 if scores[t] < 0 else -1)
        p = np.exp(np.asarray(scores) / params.temperature)
        p /= p.sum()
        order = np.argsort(-p)
        if params.top_k:
            p[order[params.top_k :]] = 0
            p /= p.sum()
        keep = 1 + np.count_nonzero(np.cumsum(p[order])[:-1] < params.top_p)
        p[order[keep:]] = 0
        p[p < params.min_p * p.max()] = 0
        return p / p.sum()

    return model


class Branching(Sampler):
    """Takes the branches named by `script`, then the first possible one; keeps track of the weight."""

    def __init__(
        self, params: SamplingParams, script: Sequence[int], processors: Sequence[LogitsProcessor] = ()
    ) -> None:
        super().__init__(params, processors)
        self.script = script
        self.taken: list[tuple[int, list[int]]] = []  # option, all possible options
        self.weight = 1.0

    def _branch(self, weights: Sequence[float]) -> int:
        possible = [i for i, w in enumerate(weights) if w > 0]
        at = len(self.taken)
        option = self.script[at] if at < len(self.script) else possible[0]
        self.taken.append((option, possible))
        self.weight *= weights[option]
        return option

    def accepts(self, probability: float) -> bool:
        chance = min(1.0, probability)
        return self._branch([chance, 1.0 - chance]) == 0

    def draw(self, probs: object) -> int:
        weights = np.asarray(probs)
        return self._branch([float(w) for w in weights / weights.sum()])


def branches(
    run: Callable[[Sampler], tuple[int, ...]],
    params: SamplingParams,
    processors: Sequence[LogitsProcessor] = (),
) -> Iterator[tuple[tuple[int, ...], float]]:
    """(result, weight) of every way the random choices inside `run` can fall."""
    script: list[int] = []
    while True:
        sampler = Branching(params, script, processors)
        yield run(sampler), sampler.weight
        taken = sampler.taken
        while taken and taken[-1][0] == taken[-1][1][-1]:
            taken.pop()
        if not taken:
            return
        option, possible = taken[-1]
        script = [o for o, _ in taken[:-1]] + [possible[possible.index(option) + 1]]


def verify(rule, tree: TokenTree, context: Sequence[int], sampler: Sampler, xp=np) -> Verdict:
    rows = [TARGET[tuple([*context][-2:])]]
    for node in range(len(tree)):
        text = [*context, *(tree.tokens[i] for i in tree.path(node))]
        # A draft token beyond the target's vocabulary gets some row: it must never be reached.
        rows.append(TARGET[text[-2] % VOCAB, text[-1] % VOCAB])
    return rule.accept(tree, TargetScores(tree, xp.asarray(np.stack(rows)), sampler, context), sampler)


def committed(tree: TokenTree, verdict: Verdict) -> tuple[int, ...]:
    return (*(tree.tokens[node] for node in verdict.path), verdict.token)


def law_of_round(
    rule,
    propose: Propose,
    depth: int,
    params: SamplingParams,
    xp=np,
    *,
    processors: Sequence[LogitsProcessor] = (),
    plain: reference.LanguageModel | None = None,
):
    """Law of the next depth + 1 tokens when one round is followed by plain decoding; mean length.

    plain: the processed model where there are processors, which `oracle` knows nothing of.
    """
    law: Counter[tuple[int, ...]] = Counter()
    mean = 0.0

    def run(sampler: Sampler) -> tuple[int, ...]:
        tree = propose(PROMPT, depth, sampler)
        return committed(tree, verify(rule, tree, PROMPT, sampler, xp))

    for text, weight in branches(run, params, processors):
        mean += weight * len(text)
        rest = reference.plain_law(plain or oracle(params), PROMPT + text, depth + 1 - len(text))
        for tail, chance in rest.items():
            law[text + tail] += weight * chance
    return law, mean


def assert_same_law(law, expected) -> None:
    for text in {*law, *expected}:
        assert law.get(text, 0.0) == pytest.approx(expected.get(text, 0.0), abs=1e-12), text


def drafting(*patterns: str, replacement: bool = True, stop_below: float = 0.0, xp=np) -> Propose:
    """A drafter that gives every node of depth d the children patterns[d], in that order.

    "r": drawn from q; "d": the likeliest token under q that no earlier sibling has.
    """

    def propose(context: Sequence[int], depth: int, sampler: Sampler) -> TokenTree:
        tokens: list[int] = []
        parents: list[int] = []
        probs: list[object] = []
        level: list[tuple[int, tuple[int, ...]]] = [(-1, ())]
        for pattern in patterns[:depth]:
            below = []
            for node, path in level:
                text = [*context, *path]
                logits = xp.asarray(DRAFT[tuple(text[-2:])])
                q = sampler.distribution(logits, Prefix(context, path))
                siblings: list[int] = []
                left = np.asarray(q).copy()
                for kind in pattern:
                    if kind == "r" and left.sum() > 0:
                        token = sampler.draw(left)
                        if not replacement:
                            left[token] = 0
                    else:
                        token = next(t for t in np.argsort(-np.asarray(q)).tolist() if t not in siblings)
                    siblings.append(token)
                    tokens.append(token)
                    parents.append(node)
                    probs.append(q if kind == "r" else None)
                    if float(q[token]) >= stop_below:
                        below.append((len(tokens) - 1, (*path, token)))
            level = below
        return TokenTree(tuple(tokens), tuple(parents), probs, replacement)

    return propose


RULES = [RejectionSampling(), BlockVerification()]
