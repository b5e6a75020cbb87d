"""A cut head that takes up the tokens of the text: what it can then say, and that the text's law stays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from support.laws.acceptance_law import PARAMS, PROMPT, RULES, VOCAB, assert_same_law, law_of_round, oracle
from support.toys.toy_model import ToyCutModel, ToyModel

from specport.core import reference
from specport.core.policies.length_rules import Threshold
from specport.core.ports import DraftRequest, Plan
from specport.core.sampling.params import SamplingParams
from specport.core.sampling.sampler import Sampler
from specport.core.tree import TokenTree
from specport.drafters.model import context_head
from specport.drafters.model.context_head import ContextHead
from specport.drafters.model.drafter import ModelDrafter
from specport.drafters.model.head import DraftHead
from specport.drafters.tree.graft import VARIANTS, GraftDrafter
from specport.drafters.tree.level_proposer import ModelLevels

KEEP = (7, 2, 5)


def request(context: Sequence[int], plan: Plan, key: int = 0, **params: float) -> DraftRequest:
    return DraftRequest(key, list(context), plan, Sampler(SamplingParams(**params)))  # type: ignore[arg-type]


def greedy(model: ToyModel, context: Sequence[int], depth: int, allowed: set[int]) -> tuple[int, ...]:
    """The chain of a head with these ids, written without any of the code under test."""
    text = [*context]
    for _ in range(depth):
        row = model.table[text[-2], text[-1]]
        text.append(max(allowed, key=lambda token: row[token]))
    return tuple(text[len(context) :])


@pytest.mark.parametrize("head_rows", [True, False])
def test_tokens_of_the_text_are_drafted_as_well(head_rows: bool) -> None:
    model = ToyCutModel(KEEP, head_rows=head_rows)
    drafter = ModelDrafter(model, 11, KEEP)
    context = [3, 9]
    for new in (4, 10, 0, 4):
        context.append(new)
        allowed = {*KEEP, *context} if head_rows else {*KEEP}
        (tree,) = drafter.propose([request(context, Plan(5))])
        assert tree.tokens == greedy(model, context, 5, allowed)
    assert model.fetched == ([3, 9, 4, 10, 0] if head_rows else [])  # each once


def test_each_text_has_its_own_tokens() -> None:
    model = ToyCutModel(KEEP)
    drafter = ModelDrafter(model, 11, KEEP)
    contexts = [[3, 4, 3], [9, 10, 0, 1]]
    for _ in range(2):
        trees = drafter.propose([request(c, Plan(6), key) for key, c in enumerate(contexts)])
        for tree, context in zip(trees, contexts, strict=True):
            assert tree.tokens == greedy(model, context, 6, {*KEEP, *context})
    drafter.forget(0)
    (tree,) = drafter.propose([request([1, 1], Plan(6))])  # the next text under this key
    assert tree.tokens == greedy(model, [1, 1], 6, {*KEEP, 1})


def test_confidence_is_over_all_columns() -> None:
    model = ToyCutModel(KEEP)
    stop = Threshold(0.0)
    (tree,) = ModelDrafter(model, 11, KEEP).propose([request([3, 9], Plan(1, stop=stop))])
    row = np.exp(model.table[3, 9][[*KEEP, 3, 9]])
    assert tree.confidence == pytest.approx((row.max() / row.sum(),), abs=1e-6)


def test_penalties_and_samples_see_target_ids() -> None:
    model = ToyCutModel(KEEP)
    drafter = ModelDrafter(model, 11, KEEP)
    (tree,) = drafter.propose([request([3, 9], Plan(1), temperature=1.0, seed=3)])
    assert tree.probs is not None
    q, allowed = np.asarray(tree.probs[0]), [*KEEP, 3, 9]
    assert set(np.flatnonzero(q)) == set(allowed)
    assert q[allowed] == pytest.approx(
        np.exp(model.table[3, 9][allowed]) / np.exp(model.table[3, 9][allowed]).sum()
    )
    plan = Plan(2)
    (plain,) = drafter.propose([request([3, 9], plan, key=1)])
    (other,) = drafter.propose([request([3, 9], plan, key=2, repetition_penalty=100.0)])
    assert plain.tokens != other.tokens and not {*other.tokens} & {3, 9}


def test_trees_of_levels_get_them_too() -> None:
    model = ToyCutModel(KEEP)
    drafter = GraftDrafter(ModelLevels(model, 11, KEEP), [], VARIANTS["graft"])
    (tree,) = drafter.propose([request([3, 9, 4], Plan(3, (2, 2, 2)))])
    roots = [token for token, parent in zip(tree.tokens, tree.parents, strict=True) if parent == -1]
    row = model.table[9, 4]
    assert roots == sorted([*KEEP, 3, 9, 4], key=lambda token: -row[token])[: len(roots)] and len(roots) > 1


def test_only_so_many_tokens_are_taken_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context_head, "MOST", 2)
    model = ToyCutModel(KEEP)
    context = ContextHead(model, DraftHead(9, KEEP))  # ids 9 and 10 are none of the target's
    context.follow(0, [7, 10, 9, 4])
    context.follow(0, [7, 10, 9, 4, 8, 3])
    assert model.fetched == [4, 8] and context.head(0).ids([0, 2, 3, 4]) == [7, 5, 4, 8]
    assert context.head(0).full(np.arange(5.0)).tolist() == [-np.inf] * 2 + [1] + [-np.inf] + [
        3,
        2,
        -np.inf,
        0,
        4,
    ]
    context.follow(0, [7, 3])  # a shorter one is another text
    assert context.head(0).ids([3]) == [3]


def test_what_was_written_anew_is_taken_up() -> None:
    model = ToyCutModel(KEEP)
    drafter = ModelDrafter(model, 11, KEEP)
    drafter.propose([request([3, 9, 4], Plan(1))])
    drafter.rewind(0, 1)
    (tree,) = drafter.propose([request([3, 8, 1], Plan(4))])
    assert model.fetched == [3, 9, 4, 8, 1]
    assert tree.tokens == greedy(model, [3, 8, 1], 4, {*KEEP, 3, 9, 4, 8, 1})


def test_a_whole_head_lacks_nothing() -> None:
    assert not DraftHead(9).lacks(3) and DraftHead(9, KEEP).lacks(3) and not DraftHead(9, KEEP).lacks(9)


@pytest.mark.parametrize("params", [PARAMS[0], PARAMS[2], PARAMS[5]], ids=str)
@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.name)
@pytest.mark.parametrize("branches", [(), (2, 1)])
def test_the_law_is_that_of_plain_decoding(
    branches: tuple[int, ...], rule: object, params: SamplingParams
) -> None:
    model = ToyCutModel((2,), vocab=VOCAB, noise=1.0, sharpness=1.0)
    model.table = model.table.astype(np.float64)  # so that the law can be compared to the twelfth digit

    def propose(context: Sequence[int], depth: int, sampler: Sampler) -> TokenTree:
        drafter = ModelDrafter(model, VOCAB, (2,))
        return drafter.propose([DraftRequest(0, list(context), Plan(depth, branches), sampler)])[0]

    law, mean = law_of_round(rule, propose, 2, params)  # type: ignore[arg-type]
    assert_same_law(law, reference.plain_law(oracle(params), PROMPT, 3))
    assert mean > 1.0 and {*model.fetched} == {*PROMPT} - {2}
