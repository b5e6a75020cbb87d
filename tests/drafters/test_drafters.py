"""What drafters propose. Their effect on the text is tested with the engine."""

from __future__ import annotations

import numpy as np
import pytest
from support.toys.toy_model import ToyModel

from specport.core.policies.length_rules import Threshold
from specport.core.ports import DraftRequest, Plan
from specport.core.sampling.params import SamplingParams
from specport.core.sampling.sampler import Sampler
from specport.drafters.model.drafter import ModelDrafter
from specport.drafters.retrieval.ngram import NgramDrafter


def request(context: list[int], plan: Plan, key: int = 0, **params: float) -> DraftRequest:
    return DraftRequest(key, context, plan, Sampler(SamplingParams(**params)))  # type: ignore[arg-type]


def test_ngram_copies_what_followed_the_longest_match() -> None:
    # "2 3" was followed by 7, but "1 2 3" by 4.
    context = [1, 2, 3, 4, 9, 2, 3, 7, 8, 1, 2, 3]
    (tree,) = NgramDrafter().propose([request(context, Plan(3))])
    assert tree.tokens == (4, 9, 2)
    assert tree.is_chain and tree.sources == ("ngram",) * 3 and tree.probs is None


def test_ngram_prefers_the_most_recent_of_equal_matches() -> None:
    context = [1, 2, 5, 5, 1, 2, 6, 6, 1, 2]
    assert NgramDrafter().propose([request(context, Plan(2))])[0].tokens == (6, 6)


def test_ngram_branches_differ_in_their_first_token() -> None:
    context = [1, 2, 5, 0, 1, 2, 6, 0, 1, 2, 6, 9, 1, 2]
    (tree,) = NgramDrafter(min_ngram=2).propose([request(context, Plan(2, (3,)))])
    assert tree.tokens == (6, 9, 5, 0)
    assert tree.parents == (-1, 0, -1, 2)


@pytest.mark.parametrize("context", [[], [1], [1, 2, 3, 4]])
def test_ngram_proposes_nothing_without_a_match(context: list[int]) -> None:
    assert not len(NgramDrafter().propose([request(context, Plan(5))])[0])


def test_ngram_match_at_the_end_overlaps_itself() -> None:
    for period in ([7], [7, 8], [7, 8, 9]):
        (tree,) = NgramDrafter(tokens_per_match=5).propose([request(period * 3, Plan(5))])
        assert tree.tokens == tuple((period * 2)[:5] if len(period) > 2 else (period * 5)[:5])


def test_ngram_index_grows_with_the_context() -> None:
    drafter, context = NgramDrafter(), [1, 2, 3]
    rng = np.random.default_rng(0)
    for _ in range(200):
        context += [int(t) for t in rng.integers(0, 4, 3)]
        fresh = NgramDrafter().propose([request(list(context), Plan(4))])
        assert drafter.propose([request(context, Plan(4))]) == fresh


@pytest.mark.parametrize(("matched", "length"), [(1, 1), (2, 3), (4, 6), (8, 12)])
def test_ngram_proposes_more_behind_a_longer_match(matched: int, length: int) -> None:
    context = [*range(50), *range(20, 20 + matched)]
    assert len(NgramDrafter().propose([request(context, Plan(20))])[0]) == length


def test_ngram_forgets() -> None:
    drafter = NgramDrafter()
    drafter.propose([request([1, 2, 3, 1, 2], Plan(2), key=7)])
    drafter.forget(7)
    assert not len(drafter.propose([request([1, 2], Plan(2), key=7)])[0])


def test_model_chain_is_the_drafts_own_greedy_text() -> None:
    draft = ToyModel()
    context = [1, 2, 3]
    (tree,) = ModelDrafter(draft, 11).propose([request(context, Plan(5))])
    assert list(tree.tokens) == draft.greedy(context, 5) and tree.is_chain


def test_model_rolls_back_what_was_not_accepted_and_rereads_little() -> None:
    draft = ToyModel()
    drafter, context = ModelDrafter(draft, 11), [1, 2, 3]
    (tree,) = drafter.propose([request(context, Plan(4))])
    context += [*tree.tokens[:2], (tree.tokens[2] + 1) % 11]  # two accepted, then a correction
    draft.widths.clear()
    (again,) = drafter.propose([request(context, Plan(4))])
    assert list(again.tokens) == draft.greedy(context, 4)
    assert draft.widths == [1, 1, 1, 1]  # only the correction was new to the draft
    # All accepted: the last drafted token was never read, and the bonus token is new.
    context += [*again.tokens, 5]
    draft.widths.clear()
    drafter.propose([request(context, Plan(2))])
    assert draft.widths == [2, 1]


def test_model_stops_behind_a_token_it_is_unsure_of() -> None:
    draft = ToyModel(sharpness=1.0)
    (tree,) = ModelDrafter(draft, 11).propose([request([1, 2, 3], Plan(8, stop=Threshold(0.5)))])
    assert len(tree) < 8
    assert all(p >= 0.5 for p in tree.confidence[:-1]) and tree.confidence[-1] < 0.5
    # The confidence is the softmax probability of the drafted token.
    logits = draft.table[2, 3].astype(float)
    assert tree.confidence[0] == pytest.approx(np.exp(logits.max()) / np.exp(logits).sum(), rel=1e-4)


def test_model_tree_has_the_likeliest_children_in_order() -> None:
    draft = ToyModel()
    (tree,) = ModelDrafter(draft, 11).propose([request([1, 2, 3], Plan(2, (2, 3)))])
    assert tree.parents == (-1, -1, 0, 0, 0, 1, 1, 1)
    best = np.argsort(-draft.table[2, 3])
    assert list(tree.tokens[:2]) == list(best[:2])
    assert list(tree.tokens[5:]) == list(np.argsort(-draft.table[3, best[1]])[:3])


def test_drawn_siblings_differ_and_carry_their_distribution() -> None:
    drafter = ModelDrafter(ToyModel(sharpness=0.5), 11)
    (tree,) = drafter.propose([request([1, 2, 3], Plan(1, (4,)), temperature=1.0, seed=1)])
    assert len(set(tree.tokens)) == 4 and not tree.replacement
    assert tree.probs is not None
    q = tree.probs[0]
    assert q is not None and q.sum() == pytest.approx(1) and all(entry is q for entry in tree.probs)


def test_draws_end_when_the_draft_has_no_more_tokens() -> None:
    drafter = ModelDrafter(ToyModel(), 11)
    (tree,) = drafter.propose([request([1, 2], Plan(1, (4,)), temperature=1.0, top_k=2, seed=1)])
    assert len(tree) == 2


def test_a_draft_reads_no_more_than_its_window() -> None:
    draft = ToyModel()
    drafter, context = ModelDrafter(draft, 11, window=6), [i % 11 for i in range(40)]
    (tree,) = drafter.propose([request(context, Plan(3))])
    assert list(tree.tokens) == draft.greedy(context[-6:], 3)
    assert draft.widths == [6, 1, 1]
    context += [*tree.tokens, 1]
    draft.widths.clear()
    drafter.propose([request(context, Plan(2))])
    assert draft.widths == [2, 1]  # it goes on from there
    context += [2, 3] * 20  # others drafted meanwhile
    draft.widths.clear()
    assert list(drafter.propose([request(context, Plan(1))])[0].tokens) == draft.greedy(context[-6:], 1)
    assert draft.widths == [6]


def test_a_draft_of_short_context_follows_a_long_text() -> None:
    draft = ToyModel(max_context=12)
    drafter, context = ModelDrafter(draft, 11), [3]
    for _ in range(30):
        (tree,) = drafter.propose([request(context, Plan(4))])
        assert list(tree.tokens) == draft.greedy(context[-8:], 4)
        context += [*tree.tokens[:2], (tree.tokens[2] + 1) % 11]
    assert not len(drafter.propose([request(context, Plan(12))])[0])  # no room for the plan itself


def test_model_knows_how_much_it_has_to_read() -> None:
    drafter, context = ModelDrafter(ToyModel(), 11, window=8), list(range(10))
    assert drafter.behind(request(context, Plan(3))) == 8  # a window of a long context
    (tree,) = drafter.propose([request(context, Plan(3))])
    context += [*tree.tokens, 5]
    assert drafter.behind(request(context, Plan(3))) == 2  # the last drafted token and the bonus token
    context[-3:] = [(context[-3] + 1) % 11]
    assert drafter.behind(request(context, Plan(3))) == 1  # a correction


def test_ngram_is_surer_behind_a_longer_match() -> None:
    context = [1, 2, 3, 4, 9, 8, 7, 1, 2, 3]
    (tree,) = NgramDrafter().propose([request(context, Plan(3))])
    assert tree.tokens == (4, 9, 8) and tree.confidence == (3 / 4, 4 / 5, 5 / 6)
    assert NgramDrafter().behind(request(context, Plan(3))) == 0


def test_ngram_for_a_planner_drafts_as_deep_as_the_plan() -> None:
    context = [*range(50), 20]
    assert len(NgramDrafter(tokens_per_match=None).propose([request(context, Plan(20))])[0]) == 20
