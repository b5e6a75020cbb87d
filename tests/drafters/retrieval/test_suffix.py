"""Suffix decoding: the index against brute force, what is drafted from it, and the history."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from support.generations import PROMPT, begin, run
from support.toys.toy_model import ToyModel

from specport.core.engine import Engine
from specport.core.planning.planner import Planner
from specport.core.planning.row_plan import Source
from specport.core.planning.step_costs import StepCosts
from specport.core.ports import DraftRequest, Plan
from specport.core.sampling.params import SamplingParams
from specport.core.sampling.sampler import Sampler
from specport.core.tree import TokenTree
from specport.drafters.retrieval import suffix_index
from specport.drafters.retrieval.history import History
from specport.drafters.retrieval.suffix import SuffixDrafter
from specport.drafters.retrieval.suffix_index import GAP, LONGEST, Ending, SuffixIndex

KEPT = 32  # matches that are counted


def request(context: Sequence[int], plan: Plan, key: int = 0, **params: float) -> DraftRequest:
    return DraftRequest(key, context, plan, Sampler(SamplingParams(**params)))  # type: ignore[arg-type]


def draft(drafter: SuffixDrafter, context: Sequence[int], plan: Plan, **params: float) -> TokenTree:
    (tree,) = drafter.propose([request(context, plan, **params)])
    return tree


def matches(text: Sequence[int], context: Sequence[int]) -> list[tuple[int, int]]:
    """(length, position) of every match, by comparing token by token; best first."""
    found = []
    for position in range(1, len(text)):
        length = 0
        while length < min(LONGEST, position, len(context)) and (
            text[position - 1 - length] == context[-1 - length] != GAP
        ):
            length += 1
        if length:
            found.append((length, position))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("unsorted", [4, 4096])
@pytest.mark.parametrize("vocab", [2, 5, 40])
def test_matches_and_counts_are_those_of_brute_force(
    monkeypatch: pytest.MonkeyPatch, vocab: int, unsorted: int
) -> None:
    monkeypatch.setattr(suffix_index, "_UNSORTED", unsorted)  # 4: nearly all of it is sorted
    rng = np.random.default_rng(vocab)
    for trial in range(60):
        text = rng.integers(0, vocab, int(rng.integers(1, 80))).tolist()
        whole = text
        if trial % 3 == 0:  # several texts
            text = [GAP if rng.random() < 0.1 else token for token in text]
        index, start = SuffixIndex(), 0
        while start < len(text):  # grown in pieces
            size = int(rng.integers(1, 12))
            index.extend(text[start : start + size])
            start += size
        context = whole if trial % 2 else rng.integers(0, vocab, int(rng.integers(1, 50))).tolist()
        found, expected = index.find(Ending.of(context), 1), matches(text, context)
        assert found.lengths == [length for length, _ in expected][:KEPT]
        if unsorted == 4096:  # then the latest of equal matches are known, however many there are
            assert found.follow[:, 0].tolist() == [text[place] for _, place in expected[:KEPT]]
        if len(expected) <= KEPT:
            for length, follow in found.levels():
                counts = Counter(text[place] for n, place in expected if n >= length)
                assert Counter(row[0] for row in follow) == counts


def test_a_text_that_repeats_has_its_latest_matches_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    for unsorted in (100, 4096):
        monkeypatch.setattr(suffix_index, "_UNSORTED", unsorted)
        text = [1, 2, 3] * 500
        found = SuffixIndex(text).find(Ending.of(text), 7)
        assert found.lengths == [LONGEST] * KEPT
        assert found.follow.tolist() == [[1, 2, 3, 1, 2, 3, 1]] * KEPT


def test_an_order_that_was_kept_finds_the_same() -> None:
    text = np.random.default_rng(1).integers(0, 6, 300).astype(np.int32)
    index = SuffixIndex(text)
    again = SuffixIndex(text, index.order)
    assert sorted(index.order.tolist()) == list(range(1, 300))
    for end in range(1, 300, 7):
        ending = Ending.of(text[:end].tolist())
        assert again.find(ending, 4).follow.tolist() == index.find(ending, 4).follow.tolist()


def test_the_likeliest_continuation_by_counts() -> None:
    # "1 2" was followed twice by 3 and once by 4, "9 1 2" once by 4.
    context = [1, 2, 3, 0, 1, 2, 3, 0, 5, 1, 2, 4, 7, 1, 2]
    tree = draft(SuffixDrafter(), context, Plan(1))
    assert tree.tokens == (3,) and tree.sources == ("suffix",) and tree.probs is None
    assert tree.confidence == (2 / (3 + 2 / 2),)  # 2 of 3, and a doubt of 2 behind 2 matching tokens
    # A longer match weighs more than the counts behind a shorter one.
    context = [1, 2, 3, 0, 1, 2, 3, 0, 9, 8, 7, 9, 1, 2, 4, 6, 9, 8, 7, 9, 1, 2]
    assert draft(SuffixDrafter(), context, Plan(1)).tokens == (4,)


@pytest.mark.parametrize(("matched", "length"), [(1, 1), (2, 2), (5, 5), (8, 8)])
def test_the_draft_grows_with_the_match(matched: int, length: int) -> None:
    context = [*range(50), *range(20, 20 + matched)]
    drafter = SuffixDrafter(least=0.0)
    assert draft(drafter, context, Plan(20)).tokens == tuple(range(20 + matched, 20 + matched + length))
    assert len(draft(SuffixDrafter(tokens_per_match=None, least=0.0), context, Plan(20))) == 20


def test_a_tree_takes_the_likeliest_nodes_within_the_plan() -> None:
    context = [1, 2, 3, 4, 0, 1, 2, 3, 5, 0, 1, 2, 3, 4, 0, 1, 2, 6, 7, 0, 1, 2]
    tree = draft(SuffixDrafter(least=0.0), context, Plan(2, (2, 2)))
    paths = {tuple(tree.tokens[i] for i in tree.path(node)) for node in range(len(tree))}
    assert paths == {(3,), (3, 4), (3, 5), (6,), (6, 7)}
    assert tree.tokens[:2] == (3, 6)  # 6 at once is likelier than 4 behind 3
    small = draft(SuffixDrafter(least=0.0, branching=True), context, Plan(2))
    assert (small.tokens, small.parents) == ((3, 4), (-1, 0))  # a plan of 2 nodes
    assert draft(SuffixDrafter(least=0.0), context, Plan(2)).is_chain


def test_unlikely_paths_are_not_drafted() -> None:
    context = [1, 2, 3, 4, 5, 6, 7, 8, 1]
    long = draft(SuffixDrafter(tokens_per_match=None, least=0.0), context, Plan(6))
    cut = draft(SuffixDrafter(tokens_per_match=None, least=0.1), context, Plan(6))
    reach = np.cumprod(long.confidence)
    assert len(long) == 6 and 0 < len(cut) < 6
    assert len(cut) == np.count_nonzero(reach >= 0.1)


def test_drafts_stop_at_the_end_of_an_earlier_text() -> None:
    drafter = SuffixDrafter(
        History([np.array([1, 2, 3, 4]), np.array([5, 6])]), tokens_per_match=None, least=0.0
    )
    assert draft(drafter, [9, 1, 2], Plan(8)).tokens == (3, 4)


@pytest.mark.parametrize("context", [[], [1], [1, 2, 3, 4]])
def test_nothing_is_drafted_without_a_match(context: list[int]) -> None:
    drafter = SuffixDrafter(History(), SuffixIndex([7, 8, GAP]), tokens_per_match=None)
    assert not len(draft(drafter, context, Plan(5))) and drafter.behind(request(context, Plan(5))) == 0


def test_an_answer_helps_the_next_from_its_first_token_on() -> None:
    drafter = SuffixDrafter(History(), tokens_per_match=None, least=0.0)
    prompt, answer = [4, 5, 6], [10, 11, 12, 13]
    context = [*prompt, answer[0]]
    drafter.propose([request(context, Plan(4), key=1)])
    context += answer[1:]
    drafter.forget(1)
    drafter.forget(1)  # twice is harmless
    assert draft(drafter, [7, *prompt], Plan(4), key=2).tokens == (10, 11, 12, 13)


def test_a_text_with_a_seed_neither_reads_nor_feeds_the_history() -> None:
    history = History([np.array([1, 2, 3, 4])])
    drafter = SuffixDrafter(history, SuffixIndex([5, 6, GAP]), tokens_per_match=None, least=0.0)
    assert draft(drafter, [1, 2], Plan(2), temperature=1.0).tokens == (3, 4)
    drafter.forget(0)
    size = len(history.index)
    assert not len(draft(drafter, [1, 2], Plan(2), temperature=1.0, seed=3))
    assert draft(drafter, [1, 2, 5], Plan(1), temperature=1.0, seed=3, key=2).tokens == (6,)  # never changes
    drafter.forget(0)
    assert len(history.index) == size


def test_a_history_drops_its_oldest_texts() -> None:
    history = History(max_tokens=100)
    for first in range(0, 400, 10):
        history.add(range(first, first + 10))
        assert len(history.index) - (len(history.index) // 11) <= 100
    drafter = SuffixDrafter(history, tokens_per_match=None, least=0.0)
    assert not len(draft(drafter, [100, 101], Plan(3)))
    assert draft(drafter, [390, 391], Plan(3), key=1).tokens == (392, 393, 394)
    history.add(range(500, 700))  # larger than the whole history
    assert not len(draft(drafter, [500, 501], Plan(3), key=2))


@pytest.mark.parametrize("tree", [True, False])
def test_a_second_answer_takes_fewer_steps_and_is_the_same(tree: bool) -> None:
    target = ToyModel(tree=tree)
    drafter = SuffixDrafter(History(), tokens_per_match=None, least=0.05, branching=tree)
    costs = StepCosts.prior({1: 1.0, 8: 1.2})
    engine = Engine(target, Planner([Source(drafter)], costs, target.capabilities))
    steps = []
    for _ in range(2):
        generation = begin(PROMPT, 40)
        assert run(engine, generation) == [target.greedy(PROMPT, 40)]
        steps.append(generation.metrics.num_steps)
    assert steps[1] < steps[0] / 2
