"""FirstProposal: the first drafter with something to say wins, as much of it as a length rule allows."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from support.generations import PROMPT, begin, run
from support.toys.toy_model import ToyModel

from specport.core.engine import Engine
from specport.core.policies.first_proposal import FirstProposal
from specport.core.policies.length_rules import (
    Fixed,
    Heuristic,
)
from specport.core.ports import DraftRequest, Needs, Outcome, Plan, Prefilled
from specport.core.sampling.params import SamplingParams
from specport.core.sampling.sampler import Sampler
from specport.core.tree import TokenTree
from specport.drafters.model.drafter import ModelDrafter
from specport.drafters.retrieval.ngram import NgramDrafter


def request(context: list[int], depth: int = 8, key: int = 0, max_nodes: int = 64) -> DraftRequest:
    return DraftRequest(key, context, Plan(depth), Sampler(SamplingParams()), max_nodes)


class Spy(NgramDrafter):
    """Keeps what it is told and asked."""

    def __init__(self, name: str = "spy", needs: Needs = Needs()) -> None:  # noqa: B008  (frozen)
        super().__init__()
        self.name, self.needs = name, needs
        self.told: list[object] = []

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        self.told += [request.plan for request in requests]
        return super().propose(requests)

    def prefilled(self, events: Sequence[Prefilled]) -> None:
        self.told.append("prefilled")

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        self.told.append("observe")

    def forget(self, key: int) -> None:
        self.told.append("forget")


def test_the_next_is_asked_only_for_what_is_empty() -> None:
    draft = ToyModel()
    policy = FirstProposal([NgramDrafter(), ModelDrafter(draft, 11)], lambda: Fixed(2))
    first, second = policy.draft([request([1, 2, 3, 1, 2], key=0), request([1, 2, 3, 4], key=1)])
    assert first.sources == ("ngram",) * 2 and second.sources == ("model",) * 2
    assert draft.num_open == 1
    policy.forget(1)
    assert draft.num_open == 0


@pytest.mark.parametrize("tree", [True, False])
def test_the_rules_plan_is_cut_to_what_a_request_allows(tree: bool) -> None:
    spy = Spy()
    policy = FirstProposal([spy], lambda: Fixed(3, (2, 2)), tree=tree)
    policy.draft([request([1], depth=2), request([1], depth=0, key=1), request([1], key=2, max_nodes=4)])
    assert spy.told == [Plan(2, (2, 2) if tree else ()), Plan(3)]  # of depth 0 nothing is asked


def test_each_sequence_has_a_rule_of_its_own() -> None:
    spy = Spy()
    policy = FirstProposal([spy], Heuristic)
    tree = TokenTree.chain([1] * 5)
    policy.draft([request([1], 20, 0), request([1], 20, 1)])
    policy.observe([Outcome(0, tree, tuple(range(5))), Outcome(1, tree, ()), Outcome(2, tree, ())])
    policy.draft([request([1], 20, 0), request([1], 20, 1)])
    policy.forget(0)
    policy.draft([request([1], 20, 0)])
    assert [told.depth for told in spy.told if isinstance(told, Plan)] == [5, 5, 7, 4, 5]


def test_all_drafters_are_told_of_everything_and_needs_are_joined() -> None:
    spies = [Spy("one", Needs(top_k=2)), Spy("two"), Spy("one", Needs(top_k=5))]
    policy = FirstProposal(spies, lambda: Fixed(2))
    assert policy.name == "one|two" and policy.needs == Needs(top_k=5)
    target = ToyModel()
    assert run(Engine(target, policy), begin(n=30)) == [target.greedy(PROMPT, 30)]
    for spy in spies:
        events = [told for told in spy.told if isinstance(told, str)]
        assert events[0] == "prefilled" and events[-1] == "forget"
        assert {*events[1:-1]} == {"observe"}
