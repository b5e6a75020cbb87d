"""Masks on logits, and texts under a constraint: greedy ones are unchanged, sampled ones keep the law."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import array_api_strict
import numpy as np
import pytest
from support.automaton import Automaton, Moves
from support.generations import PROMPT, begin, drafted, output, run
from support.toys.toy_drafter import ToyDrafter
from support.toys.toy_model import ToyModel

from specport.core.engine import Engine
from specport.core.planning.planner import Planner
from specport.core.planning.row_plan import Source
from specport.core.planning.step_costs import StepCosts
from specport.core.policies.first_proposal import FirstProposal
from specport.core.policies.length_rules import Fixed
from specport.core.ports import Drafter, DraftRequest, PlannedDrafter
from specport.core.sampling.constraint import allows, masked
from specport.core.sampling.params import SamplingParams
from specport.core.sampling.processors import Prefix
from specport.core.sampling.sampler import Sampler
from specport.core.tree import TokenTree
from specport.core.verify.rules import rule_for
from specport.drafters.forced import ForcedDrafter
from specport.drafters.model.drafter import ModelDrafter
from specport.drafters.retrieval.ngram import NgramDrafter
from specport.drafters.retrieval.recycle import RecycleDrafter
from specport.errors import InvalidInput

# Two free choices, three forced tokens, and the same again; 11 tokens in the vocabulary.
FREE = dict.fromkeys((1, 3, 4, 7), 1)
MOVES: Moves = {0: FREE, 1: dict.fromkeys((2, 3, 9), 2), 2: {5: 3}, 3: {6: 4}, 4: {5: 0}}
ENDING: Moves = {0: {1: 0, 2: 0, 3: 1}, 1: {4: 2}, 2: {5: 3}, 3: {}}


COSTS = StepCosts((1, 8), (0,), ((1.0, 1.1),), measured=True)
CHEAP = StepCosts((1, 8), (0,), ((0.1, 0.1),), measured=True)


def bits(*tokens: int, vocab: int = 16) -> np.ndarray:
    row = np.zeros(vocab, dtype=np.uint8)
    row[[*tokens]] = 1
    return np.packbits(row, bitorder="little")


@pytest.mark.parametrize("xp", [np, array_api_strict])
def test_masked_logits(xp: object) -> None:
    logits = xp.asarray(np.arange(11, dtype=np.float32))
    kept = np.asarray(masked(logits, bits(2, 9, 15)))
    assert kept[[2, 9]].tolist() == [2.0, 9.0] and np.isneginf(np.delete(kept, [2, 9])).all()
    assert masked(logits, None) is logits and masked(logits, bits()) is logits
    assert masked(logits, bits(13)) is logits  # the end, which this model has no token for
    # A draft's vocabulary may be wider than the mask: what is beyond is not allowed.
    wide = np.asarray(masked(xp.asarray(np.arange(40, dtype=np.float32)), bits(2)))
    assert np.flatnonzero(wide > -np.inf).tolist() == [2]
    # A cut head that has none of the allowed tokens drafts any of them.
    cut = xp.asarray(np.where(np.isin(np.arange(11), (2, 9)), -np.inf, 1.0).astype(np.float32))
    assert np.flatnonzero(np.asarray(masked(cut, bits(2, 9))) == 0.0).tolist() == [2, 9]


def test_many_allowed_tokens_are_masked_alike() -> None:
    logits = np.random.default_rng(1).normal(size=20_000).astype(np.float32)
    chosen = np.arange(0, 20_000, 2)  # more than are picked one by one
    kept = masked(logits, bits(*chosen, vocab=20_000))
    assert (kept[chosen] == logits[chosen]).all() and np.isneginf(kept[1::2]).all()


def test_allowed_tokens() -> None:
    assert [token for token in range(40) if allows(bits(0, 7, 8, 15), token)] == [0, 7, 8, 15]
    assert not allows(None, 3)


def test_the_likeliest_allowed_token_needs_no_mask_of_the_logits() -> None:
    constraint = Automaton({0: {2: 0, 9: 0}}, 0)
    sampler = Sampler(SamplingParams(), constraint=constraint)
    assert not sampler.plain_greedy and sampler.processes
    for best, expected in ((2, 2), (9, 9), (5, 9)):
        logits = np.arange(11, dtype=np.float32)
        logits[best] = 50.0
        assert (
            sampler.likeliest(logits, Prefix([])) == expected == int(np.argmax(sampler.process(logits, [])))
        )


def plain(toy: ToyModel, moves: Moves, n: int) -> list[int]:
    """Return plain decoding under an automaton, without any of the code under test."""
    text, state, out = [0, *PROMPT], 0, []
    while len(out) < n and moves[state]:
        row = toy.table[text[-2], text[-1]]
        token = max(moves[state], key=lambda token: row[token])
        text.append(token)
        out.append(token)
        state = moves[state][token]
    return out


def engines(toy: ToyModel, make: Callable[[], Sequence[PlannedDrafter]]) -> list[Engine]:
    """Return engines with each kind of policy."""
    first: Sequence[Drafter] = make()
    planned = [Source(ForcedDrafter(), constrained=True)]
    for drafter in make():
        model = isinstance(drafter, ModelDrafter)
        planned.append(Source(drafter, CHEAP if model else None))
    tree = toy.capabilities.tree
    return [
        Engine(toy, FirstProposal(first, lambda: Fixed(4), tree=tree)),
        Engine(toy, FirstProposal(first, lambda: Fixed(4), tree=tree, constrained=[ForcedDrafter()])),
        Engine(toy, FirstProposal(first, lambda: Fixed(2, (3, 2)), tree=tree)),
        Engine(toy, Planner(planned, COSTS, toy.capabilities)),
    ]


DRAFTERS: dict[str, Callable[[], Sequence[PlannedDrafter]]] = {
    "forced alone": tuple,
    "ngram": lambda: [NgramDrafter()],
    "recycle": lambda: [RecycleDrafter(11)],
    "toy": lambda: [ToyDrafter(ToyModel(noise=0.5))],
    "model": lambda: [ModelDrafter(ToyModel(noise=0.5), 11)],
    "a model whose head lacks allowed tokens": lambda: [ModelDrafter(ToyModel(5), 11, [0, 1, 3, 5, 8])],
}


@pytest.mark.parametrize("moves", [MOVES, ENDING], ids=["endless", "ending"])
@pytest.mark.parametrize("drafters", DRAFTERS.values(), ids=DRAFTERS)
def test_greedy_text_is_that_of_plain_decoding(
    drafters: Callable[[], Sequence[PlannedDrafter]], moves: Moves
) -> None:
    toy = ToyModel()
    expected = plain(toy, moves, 40)
    for engine in [drafted(toy), *engines(toy, drafters)]:
        generation = begin(constraint=Automaton(moves, len(PROMPT)))
        assert run(engine, generation) == [expected]
        assert generation.finish_reason == ("stop" if moves is ENDING else "length")
        # A text without a constraint beside it is as it would be alone.
        other = begin(constraint=Automaton(moves, len(PROMPT)))
        assert run(engine, begin(), other) == [toy.greedy(PROMPT, 40), expected]
    assert toy.num_open == 0


def test_forced_tokens_come_as_accepted_drafts() -> None:
    toy = ToyModel()
    engine = engines(toy, tuple)[1]
    generation = begin(n=41, constraint=Automaton(MOVES, len(PROMPT)))
    sources = [source for commit in engine.run([generation]) for source in commit.sources]
    assert sources.count("forced") == 24 and generation.metrics.acceptance_rate == 1.0
    assert generation.metrics.num_steps == 16  # a text of 41 tokens; the prompt's step gives the first
    assert "forced" not in (engine.policy.name if engine.policy else "")
    assert run(engine, free := begin(n=8)) and free.metrics.num_draft_tokens == 0


def test_drafts_that_are_not_allowed_cost_no_step() -> None:
    toy = ToyModel()
    wild = Wild()
    for engine in (drafted(toy, wild), Engine(toy, Planner([Source(wild)], COSTS, toy.capabilities))):
        constraint = Automaton(MOVES, len(PROMPT))
        seen: list[tuple[int, ...]] = []
        generation = begin(constraint=constraint)
        inner = engine._decoding._verifier.verify
        engine._decoding._verifier.verify = lambda requests, inner=inner, seen=seen: (
            seen.extend(
                (*r.context[len(PROMPT) :], *(r.tree.tokens[i] for i in r.tree.path(node)))
                for r in requests
                for node in range(len(r.tree))
            )
            or inner(requests)
        )
        assert run(engine, generation) == [plain(toy, MOVES, 40)]
        assert seen and all(constraint.state(text) is not None for text in seen)


class Wild(NgramDrafter):
    """Proposes every token below the root, and every token below each of these, allowed or not."""

    name = "wild"

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        parents = (*[-1] * 7, *(i for i in range(7) for _ in range(8)))
        tokens = (1, 2, 3, 4, 5, 6, 9, *[*range(2, 10)] * 7)
        tree = TokenTree(tokens, parents, confidence=(0.9,) * 63, sources=("wild",) * 63)
        return [tree if request.plan.depth > 1 else TokenTree() for request in requests]


@pytest.mark.parametrize("rule", ["rejection", "block"])
@pytest.mark.parametrize("kind", ["plain", "drawn", "deterministic", "forced", "model"])
def test_sampled_texts_have_the_targets_law_masked_and_normalized(kind: str, rule: str) -> None:
    from scipy.stats import chisquare

    target, draft = ToyModel(4, sharpness=1.0), ToyModel(4, sharpness=1.0, noise=0.8)
    moves: Moves = {0: {0: 1, 1: 1, 3: 1}, 1: {2: 2, 3: 3}, 2: {1: 0}, 3: {0: 0, 1: 0, 2: 0, 3: 0}}
    prompt, length, samples = [1, 2, 1, 3, 2], 4, 2000
    drafters: dict[str, list[Drafter]] = {
        "plain": [], "drawn": [ToyDrafter(draft)], "deterministic": [ToyDrafter(draft, drawn=False)],
        "forced": [], "model": [ModelDrafter(draft, 4)],
    }  # fmt: skip
    constrained = [ForcedDrafter()] if kind != "plain" else []
    policy = FirstProposal(drafters[kind], lambda: Fixed(2, (2, 1)), constrained=constrained)
    engine = Engine(target, None if kind == "plain" else policy)
    params = SamplingParams(temperature=0.9)
    law: dict[tuple[int, ...], float] = {}

    def spread(text: tuple[int, ...], chance: float) -> None:
        if len(text) == length:
            law[text] = chance
            return
        whole = [*prompt, *text]
        allowed = moves[Automaton(moves, 0).state(text) or 0]
        row = target.table[whole[-2], whole[-1]].astype(np.float64) / 0.9
        weights = {token: float(np.exp(row[token])) for token in allowed}
        for token, weight in weights.items():
            spread((*text, token), chance * weight / sum(weights.values()))

    spread((), 1.0)
    counts = dict.fromkeys(law, 0)
    for first in range(0, samples, 50):
        generations = [
            begin(
                prompt, length, params=replace(params, seed=seed), rule=rule_for(params, rule),
                constraint=Automaton(moves, len(prompt)),
            )
            for seed in range(first, first + 50)
        ]  # fmt: skip
        for text in run(engine, *generations):
            counts[tuple(text)] += 1  # KeyError: a text that the constraint forbids
    texts = sorted((text for text in law), key=lambda text: law[text])
    groups = np.arange(len(texts)) // 3
    expected = np.bincount(groups, [law[text] * samples for text in texts])
    observed = np.bincount(groups, [counts[text] for text in texts])
    likely = expected > 5
    assert chisquare(
        [*observed[likely], observed[~likely].sum() + 1e-9],
        [*expected[likely], expected[~likely].sum() + 1e-9],
    ).pvalue > 1e-3  # fmt: skip


def test_a_constraint_that_fails_ends_its_own_text_only() -> None:
    class Failing(Automaton):
        def complete(self, tokens: Sequence[int]) -> bool:
            if len(tokens) > len(PROMPT) + 3:
                raise InvalidInput("too complex")
            return False

    toy = ToyModel()
    engine = drafted(toy, NgramDrafter())
    failing, other = begin(constraint=Failing(MOVES, len(PROMPT))), begin()
    engine.add(other)
    with pytest.raises(InvalidInput, match="too complex"):
        run(engine, failing)
    assert failing.finish_reason == "cancelled"
    while not other.ended:
        engine.step()
    assert output(other) == toy.greedy(PROMPT, 40)
