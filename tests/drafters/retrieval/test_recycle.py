"""Token recycling: what the engine tells it, what it remembers of that, and what it proposes."""

from __future__ import annotations

import numpy as np
import pytest
from support.generations import PROMPT, begin, drafted, run
from support.toys.toy_model import ToyModel

from specport.core.engine import Engine
from specport.core.planning.planner import Planner
from specport.core.planning.row_plan import Source
from specport.core.planning.step_costs import StepCosts
from specport.core.planning.tree_pruning import subtree
from specport.core.policies.first_proposal import FirstProposal
from specport.core.policies.length_rules import (
    Fixed,
    Heuristic,
    LengthRule,
)
from specport.core.ports import DraftRequest, Needs, Outcome, Plan, Policy
from specport.core.sampling.params import SamplingParams
from specport.core.sampling.sampler import Sampler
from specport.core.tree import TokenTree
from specport.drafters.model.drafter import ModelDrafter
from specport.drafters.retrieval.ngram import NgramDrafter
from specport.drafters.retrieval.recycle import RANK_PROBABILITIES, RecycleDrafter, SuccessorTable, template

COSTS = StepCosts.prior({1: 1.0, 8: 1.5})


def request(context: list[int], plan: Plan, key: int = 0, **params: float) -> DraftRequest:
    return DraftRequest(key, context, plan, Sampler(SamplingParams(**params)))  # type: ignore[arg-type]


def taught(*rows: list[int], **options: int) -> RecycleDrafter:
    """A drafter that saw token i followed by rows[i]."""
    drafter = RecycleDrafter(20, len(rows[0]), **options)
    tree = TokenTree(tuple(range(1, len(rows))), (-1,) * (len(rows) - 1))
    drafter.observe([Outcome(0, tree, (), root=0, top=np.asarray(rows))])
    return drafter


class Spy(NgramDrafter):
    """Keeps what the engine reports."""

    def __init__(self, top_k: int) -> None:
        super().__init__()
        self.needs = Needs(top_k=top_k)
        self.outcomes: list[Outcome] = []

    def observe(self, outcomes: list[Outcome]) -> None:  # type: ignore[override]
        self.outcomes += outcomes


@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("holder", ["alone", "second", "planner"])
def test_the_engine_tells_what_the_target_thought_of_every_node(batch: bool, holder: str) -> None:
    target, spy = ToyModel(batch=batch), Spy(top_k=3)
    drafters = [ModelDrafter(ToyModel(noise=0.5), 11), spy] if holder == "second" else [spy]
    policy: Policy = FirstProposal(drafters, lambda: Fixed(3, (2, 2)))
    if holder == "planner":
        policy = Planner([Source(spy)], COSTS, target.capabilities)
    engine = Engine(target, policy)
    generations = [begin(prompt) for prompt in (PROMPT, [7, 7, 7])]
    texts = {g.key: g.tokens for g in generations}
    run(engine, *generations)
    assert any(len(outcome.tree) > 1 for outcome in spy.outcomes)
    at = {g.key: g.num_prompt_tokens for g in generations}
    for outcome in spy.outcomes:
        before = [0, *texts[outcome.key][: at[outcome.key]], outcome.root]
        assert outcome.root == texts[outcome.key][at[outcome.key]]
        at[outcome.key] += len(outcome.path) + 1
        assert outcome.top is not None
        for node in range(-1, len(outcome.tree)):
            context = [*before, *(outcome.tree.tokens[i] for i in outcome.tree.path(node))]
            expected = np.argsort(-target.table[context[-2], context[-1]])[:3]
            assert outcome.top[node + 1].tolist() == expected.tolist()


def test_nothing_is_worked_out_where_nobody_asks() -> None:
    spy = Spy(top_k=0)
    run(drafted(ToyModel(), spy), begin())
    assert spy.outcomes and all(outcome.top is None for outcome in spy.outcomes)


def test_a_chain_follows_the_likeliest_successors() -> None:
    drafter = taught([1, 2], [3, 4], [5, 6], [0, 9])
    (tree,) = drafter.propose([request([0], Plan(4))])
    assert tree.tokens == (1, 3, 0, 1) and tree.is_chain and tree.probs is None
    assert tree.sources == ("recycle",) * 4 and tree.confidence == (RANK_PROBABILITIES[0],) * 4


def test_a_tree_has_the_successors_of_each_node_and_leaves_out_what_it_does_not_know() -> None:
    drafter = taught([1, 7], [3, 2], [5, 6], [0, 9])  # 7, 5, 6 and 9 have no successors
    (tree,) = drafter.propose([request([0], Plan(3, (2, 2, 2)))])
    paths = {tuple(tree.tokens[i] for i in tree.path(node)) for node in range(len(tree))}
    assert paths == {(1,), (7,), (1, 3), (1, 2), (1, 3, 0), (1, 3, 9), (1, 2, 5), (1, 2, 6)}


@pytest.mark.parametrize("plan", [Plan(1), Plan(4), Plan(3, (2,)), Plan(5, (3, 2)), Plan(9, (8, 8))])
def test_the_budget_is_the_plans(plan: Plan) -> None:
    drafter = taught(*[[(7 * i + j) % 20 for j in range(8)] for i in range(20)])
    (tree,) = drafter.propose([request([0], plan)])
    assert len(tree) == (plan.max_nodes if plan.branches else min(plan.depth, 6))
    assert max(tree.depths()) <= plan.depth
    assert tree.is_chain or plan.branches
    siblings = [(parent, token) for parent, token in zip(tree.parents, tree.tokens, strict=True)]
    assert len(set(siblings)) == len(siblings)


def test_for_a_planner_it_branches_unasked() -> None:
    (tree,) = taught([1, 2], [3, 4], [5, 6], [0, 9], branching=True).propose([request([0], Plan(4))])
    assert len(tree) == 4 and not tree.is_chain


def test_a_smaller_template_is_the_front_of_a_larger_one() -> None:
    whole = template(80, 6, 8)
    assert template(25, 6, 8) == whole[:25]
    tree = TokenTree((0,) * 80, tuple(parent for parent, _ in whole))
    assert max(tree.depths()) == 6
    children = tree.children()
    assert len(children[-1]) == 8
    assert len(children[0]) >= len(children.get(1, ())) >= len(children.get(2, ()))
    assert subtree(tree, range(25)).parents == tree.parents[:25]


def test_what_the_text_goes_on_from_is_remembered_of_a_token_that_was_scored_twice() -> None:
    drafter = RecycleDrafter(10, 1)
    tree = TokenTree((4, 5, 4), (-1, 0, -1))
    top = np.asarray([[4], [5], [6], [9]])
    drafter.observe([Outcome(0, tree, (0, 1), root=3, top=top)])
    assert drafter.propose([request([4], Plan(1))])[0].tokens == (5,)


def test_the_prompt_fills_rows_that_the_target_has_not_filled() -> None:
    drafter = taught([9, 8], [7, 6])
    (tree,) = drafter.propose([request([0, 3, 2, 4, 2, 5, 1, 2], Plan(1, (3,)))])
    assert tree.tokens == (5, 4)  # the latest first
    (tree,) = drafter.propose([request([0, 3, 1, 2, 0], Plan(1, (3,)), key=1)])
    assert tree.tokens == (9, 8)


def test_the_table_is_bounded_whatever_it_is_taught() -> None:
    table = SuccessorTable(50, 4)
    rng = np.random.default_rng(0)
    for _ in range(200):
        table.write([int(t) for t in rng.integers(0, 50, 16)], rng.integers(0, 50, (16, 8)))
        table.warm([int(t) for t in rng.integers(0, 50, 300)])
    assert table.nbytes == 50 * 4 * 4
    assert all(len(table.row(token)) <= 4 for token in range(50))


def test_a_seeded_text_has_a_table_of_its_own() -> None:
    drafter = taught([1, 2], [3, 4])
    seeded = request([0], Plan(2), key=5, temperature=1.0, seed=1)
    assert not len(drafter.propose([seeded])[0])
    drafter.observe([Outcome(5, TokenTree(), (), root=0, top=np.asarray([[8, 9]]))])
    assert drafter.propose([seeded])[0].tokens == (8,)
    assert drafter.propose([request([0], Plan(1))])[0].tokens == (1,)
    drafter.forget(5)
    assert not len(drafter.propose([seeded])[0])


def test_it_goes_on_from_drafted_tokens() -> None:
    drafter = taught([1, 2], [3, 4])
    assert drafter.below(request([0], Plan(1)), (1,)).tokens == (3,)


@pytest.mark.parametrize("rule", [Fixed(4), Fixed(4, (3, 2)), None, Heuristic()], ids=str)
@pytest.mark.parametrize("tree", [True, False])
def test_greedy_text_equals_plain_decoding(rule: LengthRule | None, tree: bool) -> None:
    """rule: None = the planner decides."""
    target = ToyModel(tree=tree)
    drafter = RecycleDrafter(11, branching=tree)
    if rule is None:
        engine = Engine(target, Planner([Source(drafter)], COSTS, target.capabilities))
    else:
        engine = drafted(target, drafter, rule=lambda: rule)
    generations = [begin(p) for p in (PROMPT, [1], PROMPT[::-1])]
    assert run(engine, *generations) == [target.greedy(p, 40) for p in (PROMPT, [1], PROMPT[::-1])]


def test_what_was_drafted_in_vain_is_of_use_to_later_texts() -> None:
    target = ToyModel()
    engine = drafted(target, RecycleDrafter(11), rule=lambda: Fixed(4, (4, 3, 2)))
    steps = []
    for _ in range(2):
        generation = begin([3], n=16)  # it does not repeat itself
        run(engine, generation)
        steps.append(generation.metrics.num_steps)
    assert steps[1] < steps[0]


@pytest.mark.parametrize("k", [0, 9])
def test_the_number_of_successors_is_checked(k: int) -> None:
    with pytest.raises(ValueError, match="successors"):
        RecycleDrafter(10, k)
