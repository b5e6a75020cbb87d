"""Logits processors: a list that target and draft go through alike, at every candidate prefix of a tree."""

from __future__ import annotations

from collections.abc import Sequence

import array_api_strict
import numpy as np
import pytest
from array_api_compat import array_namespace
from support.generations import PROMPT as TEXT
from support.generations import begin, drafted, run
from support.laws.acceptance_law import (
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
from support.laws.sampling_law import check_law
from support.toys.toy_drafter import ToyDrafter
from support.toys.toy_model import ToyModel

from specport.core import reference
from specport.core.policies.length_rules import Fixed
from specport.core.sampling.params import SamplingParams
from specport.core.sampling.processors import RepetitionPenalty
from specport.core.sampling.sampler import Sampler
from specport.core.tree import TokenTree
from specport.core.verify.rules import Greedy, RejectionSampling, rule_for
from specport.core.verify.scores import TargetScores

Logits = np.ndarray


class Suppress:
    """Forbids some tokens; `after`: only right behind this one."""

    is_identity = False

    def __init__(self, *tokens: int, after: int | None = None) -> None:
        self.tokens, self.after = tokens, after
        self.prefixes: list[tuple[int, ...]] = []

    def __call__(self, logits: Logits, prefix: Sequence[int]) -> Logits:
        self.prefixes.append((*prefix,))
        if self.after is not None and prefix[-1] != self.after:
            return logits
        xp = array_namespace(logits)
        changed = xp.asarray(logits, copy=True)
        for token in self.tokens:
            changed[token] = -np.inf
        return changed


class Scale:
    def __init__(self, factor: float) -> None:
        self.factor, self.calls = factor, 0

    @property
    def is_identity(self) -> bool:
        return self.factor == 1.0

    def __call__(self, logits: Logits, prefix: Sequence[int]) -> Logits:
        self.calls += 1
        return logits * self.factor


class Shift(Scale):
    is_identity = False

    def __call__(self, logits: Logits, prefix: Sequence[int]) -> Logits:
        return logits + self.factor


def suppressed(
    tokens: Sequence[int], after: int | None, params: SamplingParams = SAMPLED
) -> reference.LanguageModel:
    """The law of a text in which these tokens are forbidden, by its definition."""
    free = oracle(params)

    def model(prefix: tuple[int, ...]) -> np.ndarray:
        p = free(prefix).copy()
        if after is None or prefix[-1] == after:
            p[[*tokens]] = 0.0
        return p / p.sum()

    return model


def test_identity_processors_are_left_out() -> None:
    nothing = Scale(1.0)
    sampler = Sampler(SamplingParams(), [nothing, RepetitionPenalty(1.0)])
    assert not sampler.processes and sampler.plain_greedy
    logits = np.asarray([1.0, 3.0, 2.0])
    assert sampler.process(logits, ()) is logits and sampler.choose(logits, ()) == 1 and nothing.calls == 0
    for processes in (
        Sampler(SamplingParams(), [Scale(2.0)]),
        Sampler(SamplingParams(repetition_penalty=1.2)),
    ):
        assert processes.processes and not processes.plain_greedy
    assert not Sampler(SAMPLED).plain_greedy


def test_processors_run_in_order_behind_those_of_the_parameters() -> None:
    sampler = Sampler(SamplingParams(repetition_penalty=2.0), [Shift(1.0), Scale(10.0)])
    found = sampler.process(np.asarray([4.0, 4.0, -3.0], dtype=np.float32), (1, 2))
    assert found.tolist() == [50.0, 30.0, -50.0]


def test_the_logits_stay_as_they_were() -> None:
    logits = np.asarray([1.0, 2.0, 3.0], dtype=np.float32)
    sampler = Sampler(SAMPLED, [Suppress(0)])
    assert sampler.distribution(logits, (1,))[0] == 0.0
    assert logits.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("xp", [np, array_api_strict], ids=["numpy", "strict"])
def test_each_node_is_processed_with_its_own_prefix(xp) -> None:
    tree = TokenTree((0, 1, 2, 0), (-1, -1, 1, 2))
    best = [1, 0, 2, 0, 1]
    logits = xp.asarray(np.eye(VOCAB)[best])
    seen = Suppress(9 % VOCAB, after=99)
    sampler = Sampler(SamplingParams(), [seen])
    verdict = Greedy().accept(tree, TargetScores(tree, logits, sampler, PROMPT), sampler)
    assert (verdict.path, verdict.token) == ((1, 2, 3), 1)
    assert seen.prefixes == [(*PROMPT, *path) for path in ((), (1,), (1, 2), (1, 2, 0))]
    seen.prefixes.clear()
    TargetScores(tree, logits, sampler, PROMPT).argmax()
    assert seen.prefixes == [(*PROMPT, *path) for path in ((), (0,), (1,), (1, 2), (1, 2, 0))]


@pytest.mark.parametrize("after", [None, 1, PROMPT[-1]])
@pytest.mark.parametrize("params", [SAMPLED, SamplingParams(temperature=0.6)], ids=str)
@pytest.mark.parametrize(
    "pattern", [("r", "r"), ("d", "d"), ("r", "d"), ("rr", "r"), ("rdr",), ("dd", "d")], ids="-".join
)
@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.name)
def test_suppression_on_target_and_draft_keeps_the_exact_law(rule, pattern, params, after) -> None:
    depth = len(pattern)
    plain = suppressed([2], after, params)
    law, _ = law_of_round(
        rule, drafting(*pattern), depth, params, processors=[Suppress(2, after=after)], plain=plain
    )
    assert_same_law(law, reference.plain_law(plain, PROMPT, depth + 1))


def test_several_rounds_of_a_suppressed_text_keep_the_law() -> None:
    processors = [Suppress(2, after=0), Suppress(0, after=1)]

    def plain(prefix: tuple[int, ...]) -> np.ndarray:
        banned = {0: 2, 1: 0}.get(prefix[-1])
        p = oracle(SAMPLED)(prefix).copy()
        if banned is not None:
            p[banned] = 0.0
        return p / p.sum()

    def written(sampler: Sampler) -> tuple[int, ...]:
        text = [*PROMPT]
        while (left := len(PROMPT) + 3 - len(text)) > 0:
            tree = drafting("r", "r")(text, left - 1, sampler)
            text += committed(tree, verify(RejectionSampling(), tree, text, sampler))
        return tuple(text[len(PROMPT) :])

    law: dict[tuple[int, ...], float] = {}
    for text, weight in branches(written, SAMPLED, processors):
        law[text] = law.get(text, 0.0) + weight
    assert_same_law(law, reference.plain_law(plain, PROMPT, 3))


def test_a_draft_that_is_not_suppressed_keeps_the_law_too() -> None:
    """A draft may propose what the target forbids: it is never accepted."""
    logits = TARGET[PROMPT]
    q = np.exp(logits) / np.exp(logits).sum()

    def propose(context: Sequence[int], depth: int, sampler: Sampler) -> TokenTree:
        return TokenTree.chain([sampler.draw(q)], probs=[q])

    plain = suppressed([1], None)
    for rule in RULES:
        law, _ = law_of_round(rule, propose, 1, SAMPLED, processors=[Suppress(1)], plain=plain)
        assert_same_law(law, reference.plain_law(plain, PROMPT, 2))


def forbidden(target: ToyModel, banned: int) -> ToyModel:
    """A model that cannot write a token, as a check of the processor that forbids it."""
    other = ToyModel(target.vocab)
    other.table = target.table.copy()
    other.table[:, :, banned] = -np.inf
    return other


@pytest.mark.parametrize("branches", [(), (3, 2)])
def test_a_greedy_text_with_a_token_suppressed_is_that_of_a_model_without_it(
    branches: tuple[int, ...],
) -> None:
    target = ToyModel()
    banned = target.greedy(TEXT, 1)[0]
    engine = drafted(target, ToyDrafter(ToyModel(noise=0.4)), rule=lambda: Fixed(4, branches))
    generation = begin(TEXT, 40, processors=[Suppress(banned)])
    assert run(engine, generation) == [forbidden(target, banned).greedy(TEXT, 40)]
    assert generation.metrics.num_accepted_tokens > 0


@pytest.mark.parametrize(
    ("branches", "name", "drawn"),
    [((), "rejection", True), ((), "block", True), ((2, 2), "rejection", True), ((3,), "rejection", False)],
)
def test_the_whole_loop_keeps_the_law_of_a_suppressed_text(
    branches: tuple[int, ...], name: str, drawn: bool
) -> None:
    vocab, samples = 4, 1500
    target = ToyModel(vocab, sharpness=1.0)
    drafter = ToyDrafter(ToyModel(vocab, sharpness=1.0, noise=0.7), drawn=drawn)
    engine = drafted(target, drafter, rule=lambda: Fixed(3, branches))
    prompt, counts = [1, 2, 1, 3, 2], np.zeros((vocab,) * 3)
    for seed in range(samples):
        params = SamplingParams(temperature=0.9, top_p=0.95, seed=seed)
        generation = begin(prompt, 3, params=params, rule=rule_for(params, name), processors=[Suppress(1)])
        counts[tuple(run(engine, generation)[0])] += 1
    check_law(counts, forbidden(target, 1), prompt, SamplingParams(temperature=0.9, top_p=0.95))
