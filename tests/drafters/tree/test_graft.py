"""Grafted trees: their size, what they hold, and that the text stays what the target alone would write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from support.generations import begin, drafted, run
from support.laws.acceptance_law import PARAMS, PROMPT, RULES, VOCAB, assert_same_law, law_of_round, oracle
from support.toys.strict_model import StrictModel
from support.toys.toy_model import ToyModel

from specport.core import reference
from specport.core.engine import Engine
from specport.core.planning.planner import Planner
from specport.core.planning.row_plan import Source
from specport.core.planning.step_costs import StepCosts
from specport.core.policies.length_rules import Fixed, Threshold, make_length_rule
from specport.core.ports import Drafter, DraftRequest, Needs, Outcome, Plan, Prefilled
from specport.core.sampling.params import SamplingParams
from specport.core.sampling.sampler import Sampler
from specport.core.tree import TokenTree
from specport.drafters.model.expand import Expansion
from specport.drafters.retrieval.ngram import NgramDrafter
from specport.drafters.retrieval.recycle import RecycleDrafter
from specport.drafters.retrieval.suffix import SuffixDrafter
from specport.drafters.tree.graft import VARIANTS, Checkpoint, DraftedRound, GraftDrafter, Variant
from specport.drafters.tree.level_proposer import Children, ModelLevels

ALWAYS = Variant((Checkpoint(1, 2.0, 0.25),))
CONTEXT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
COSTS = StepCosts.prior({1: 1.0, 8: 1.5})


def request(context: list[int], plan: Plan, key: int = 0, **params: float) -> DraftRequest:
    return DraftRequest(key, context, plan, Sampler(SamplingParams(**params)))  # type: ignore[arg-type]


def graft(kind: str, target: ToyModel, draft: ToyModel | None = None, **options: object) -> GraftDrafter:
    """A variant's name, or one of the others, which retrieve with other drafters."""
    draft = draft or ToyModel(noise=0.8)
    recycle = RecycleDrafter(target.vocab_size)
    retrieval = {"graft-ngram": [NgramDrafter()], "graft-suffix": [SuffixDrafter(), recycle]}.get(
        kind, [recycle]
    )
    variant = ALWAYS if kind == "always" else VARIANTS[kind.partition("-")[0]]
    return GraftDrafter(ModelLevels(draft, target.vocab_size), retrieval, variant, **options)  # type: ignore[arg-type]


KINDS = [*VARIANTS, "always", "graft-ngram", "graft-suffix"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", [Fixed(4, (3, 3)), Fixed(6, (2, 2, 2)), Fixed(5)])
@pytest.mark.parametrize("batch", [True, False])
def test_greedy_text_equals_plain_decoding(kind: str, policy: Fixed, batch: bool) -> None:
    target, draft = ToyModel(batch=batch), ToyModel(noise=0.8, batch=batch)
    engine = drafted(target, graft(kind, target, draft), rule=lambda: policy)
    prompts = [CONTEXT, [1], [7, 7, 7]]
    generations = [begin(p, n=24) for p in prompts]
    assert run(engine, *generations) == [target.greedy(p, 24) for p in prompts]
    assert sum(g.metrics.num_accepted_tokens for g in generations) > 0
    assert target.num_open == draft.num_open == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trees", [True, False])
def test_greedy_text_where_the_models_take_chains_only(kind: str, trees: bool) -> None:
    target, draft = ToyModel(tree=trees), ToyModel(tree=False, noise=0.8)
    engine = drafted(target, graft(kind, target, draft), rule=lambda: Fixed(5, (3, 2)))
    assert run(engine, begin()) == [target.greedy(CONTEXT, 40)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tree", [True, False])
@pytest.mark.parametrize("policy", ["planned", "confidence", "heuristic"])
def test_greedy_text_when_planned(kind: str, tree: bool, policy: str) -> None:
    target = ToyModel(tree=tree)
    drafter = graft(kind, target, branching=tree and policy == "planned")
    if policy == "planned":
        sources = [Source(NgramDrafter(tokens_per_match=None)), Source(drafter, COSTS)]
        engine = Engine(target, Planner(sources, COSTS, target.capabilities))
    else:
        engine = drafted(target, drafter, rule=lambda: make_length_rule(policy))
    assert run(engine, begin()) == [target.greedy(CONTEXT, 40)]


@pytest.mark.parametrize("kind", ["tail", "graft"])
def test_on_strict_arrays_and_with_a_penalty(kind: str) -> None:
    target = StrictModel()
    engine = drafted(target, graft(kind, target, StrictModel(noise=0.8)), rule=lambda: Fixed(4, (3, 2)))
    assert run(engine, begin(n=20)) == [target.greedy(CONTEXT, 20)]
    texts = []
    for drafter in (None, graft(kind, target, StrictModel(noise=0.8))):
        engine = drafted(target, drafter, rule=lambda: Fixed(4, (3, 2)))
        texts.append(run(engine, begin(n=20, params=SamplingParams(repetition_penalty=1.3))))
    assert texts[0] == texts[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_seeded_text_comes_out_twice_the_same(kind: str) -> None:
    target = ToyModel()
    engine = drafted(target, graft(kind, target), rule=lambda: Fixed(4, (3, 2)))
    params = SamplingParams(temperature=1.0, seed=3)
    first, _, second = (
        run(engine, begin(prompt, n=24, params=params)) for prompt in (CONTEXT, [1, 2], CONTEXT)
    )
    assert first == second


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("plan", [Plan(1), Plan(6), Plan(1, (5,)), Plan(4, (3, 2, 2)), Plan(7, (4, 3))])
def test_the_budget_is_constant_and_never_exceeded(kind: str, plan: Plan) -> None:
    target = ToyModel()
    drafter = graft(kind, target, budget=30)
    rng = np.random.default_rng(0)
    tree = TokenTree(tuple(range(10)), (-1,) * 10)
    top = np.stack([rng.permutation(11)[:8] for _ in range(11)])
    drafter.observe([Outcome(9, tree, (), root=10, top=top)])
    (tree,) = drafter.propose([request(CONTEXT, plan)])
    assert len(tree) == min(30, plan.max_nodes) or (tree.is_chain and len(tree) <= plan.depth)
    assert max(tree.depths()) <= plan.depth
    assert tree.probs is None and len(tree.confidence) == len(tree.sources) == len(tree)
    children = [(parent, token) for parent, token in zip(tree.parents, tree.tokens, strict=True)]
    assert len(set(children)) == len(children)
    if not plan.branches:
        assert tree.is_chain


class Script:
    """A source that answers as it is told: path -> children."""

    name, forks, needs = "script", True, Needs()

    def __init__(self, children: dict[tuple[int, ...], Children]) -> None:
        self.children = children
        self.asked: list[list[tuple[int, ...]]] = []

    def behind(self, request: DraftRequest) -> int:
        return 1

    def expand(self, trees: Sequence[Expansion], width: int) -> list[list[Children]]:
        self.asked += [[tree.path_tokens(node) for node in tree.frontier] for tree in trees]
        return [
            [self.children.get(path, [])[:width] for path in paths] for paths in self.asked[-len(trees) :]
        ]

    def prefilled(self, events: Sequence[Prefilled]) -> None: ...

    def observe(self, outcomes: Sequence[Outcome]) -> None: ...

    def forget(self, key: int) -> None: ...


class Retrieved(NgramDrafter):
    """Finds the tree that it is told to find."""

    name = "retrieved"

    def __init__(self, tree: TokenTree) -> None:
        super().__init__()
        sources, confidence = (self.name,) * len(tree), (0.5,) * len(tree)
        self.tree = replace(tree, sources=sources, confidence=confidence)

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        return [self.tree for _ in requests]


SCRIPT: dict[tuple[int, ...], Children] = {
    (): [(1, 0.6), (2, 0.3), (3, 0.1)],
    (1,): [(4, 0.5), (5, 0.4)],
    (2,): [(6, 0.9)],
    (1, 4): [(7, 0.9)],
}


def paths(tree: TokenTree) -> list[tuple[int, ...]]:
    return [tuple(tree.tokens[i] for i in tree.path(node)) for node in range(len(tree))]


def test_the_likeliest_paths_are_kept_as_in_eagle_2() -> None:
    drafter = GraftDrafter(Script(SCRIPT), variant=VARIANTS["dynamic"], budget=5)
    (tree,) = drafter.propose([request([0], Plan(3, (3, 3, 3)))])
    # 0.6, 0.3 (both at depth 1 and below it), 0.27 twice (the earlier first)
    assert paths(tree) == [(1,), (2,), (1, 4), (2, 6), (1, 4, 7)]
    assert tree.confidence == (0.6, 0.3, 0.5, 0.9, 0.9)


def test_no_level_is_drafted_that_could_not_be_kept() -> None:
    source = Script(SCRIPT)
    GraftDrafter(source, variant=VARIANTS["dynamic"], budget=2).propose([request([0], Plan(3, (2, 2)))])
    assert source.asked == [[()], [(1,), (2,)]]  # below 0.3, 0.3 there is nothing to win


@pytest.mark.parametrize(("threshold", "levels"), [(0.59, 3), (0.61, 1)])
def test_it_stops_where_the_best_path_is_below_the_threshold(threshold: float, levels: int) -> None:
    source = Script(SCRIPT)
    variant = Variant((Checkpoint(1, threshold, 0.5),))
    drafter = GraftDrafter(source, variant=variant, budget=12)
    drafter.propose([request([0], Plan(3, (3, 3, 3)))])
    assert len(source.asked) == levels


def test_retrieved_nodes_fill_what_pruning_freed_and_duplicates_are_redirected() -> None:
    found = TokenTree((1, 8, 9, 5, 2, 7, 6, 6), (-1, 0, -1, 1, -1, 4, 2, 1))  # 1-8-5, 1-8-6, 9-6, 2-7
    variant = Variant((Checkpoint(1, 2.0, 3 / 8),))
    drafter = GraftDrafter(Script(SCRIPT), [Retrieved(found)], variant, budget=8)
    (tree,) = drafter.propose([request([0], Plan(3, (3, 3, 3)))])
    assert paths(tree) == [(1,), (2,), (3,), (1, 8), (9,), (1, 8, 5), (2, 7), (9, 6)]
    assert tree.sources == ("script",) * 3 + ("retrieved",) * 5


def test_drafted_nodes_take_back_what_retrieval_leaves() -> None:
    variant = Variant((Checkpoint(1, 2.0, 0.25),))
    drafter = GraftDrafter(Script(SCRIPT), [Retrieved(TokenTree.chain([1, 8]))], variant, budget=4)
    (tree,) = drafter.propose([request([0], Plan(3, (3, 3, 3)))])
    assert paths(tree) == [(1,), (1, 8), (2,)]  # two children a node at this budget


def test_a_stop_rule_frees_what_the_next_checkpoint_would() -> None:
    source = Script(SCRIPT)
    variant = Variant((Checkpoint(2, 0.0, 0.5),))
    drafter = GraftDrafter(source, [Retrieved(TokenTree.chain([8, 8, 8]))], variant, budget=4)
    (tree,) = drafter.propose([request([0], Plan(3, (2, 2, 2), stop=Threshold(0.7)))])
    assert len(source.asked) == 1
    assert paths(tree) == [(1,), (2,), (8,), (8, 8)]


def test_root_and_tail_differ_in_where_they_graft() -> None:
    trees = {}
    for name in ("root", "tail"):
        recycle = RecycleDrafter(20)
        top = np.asarray([[10, 11], [12, 13]])
        recycle.observe([Outcome(0, TokenTree((7,), (-1,)), (), root=0, top=top)])
        drafter = GraftDrafter(Script(SCRIPT), [recycle], VARIANTS[name], budget=12)
        trees[name] = drafter.propose([request([0], Plan(4, (2, 2, 2)))])[0]
        assert len(trees[name]) <= 12
    grafted = {
        name: [path for path, source in zip(paths(tree), tree.sources, strict=True) if source == "recycle"]
        for name, tree in trees.items()
    }
    assert grafted == {"root": [(10,), (11,)], "tail": [(1, 4, 7, 12), (1, 4, 7, 13)]}


def test_retrieval_at_a_leaf_needs_a_drafter_that_can() -> None:
    with pytest.raises(ValueError, match="leaf"):
        GraftDrafter(Script(SCRIPT), [NgramDrafter()], VARIANTS["tail"])


def test_a_chain_is_drafted_while_sure_and_goes_on_with_what_is_retrieved() -> None:
    recycle = RecycleDrafter(20)
    recycle.observe([Outcome(0, TokenTree((9,), (-1,)), (), root=4, top=np.asarray([[9], [3]]))])
    variant = Variant((Checkpoint(2, 0.5, 0.5),))
    drafter = GraftDrafter(Script(SCRIPT), [recycle], variant)
    (tree,) = drafter.propose([request([0], Plan(4))])
    assert tree.tokens == (1, 4, 9, 3) and tree.is_chain
    assert tree.sources == ("script", "script", "recycle", "recycle")


def test_retrieval_finds_what_repeats() -> None:
    """The target goes round in a loop of tokens; a hopeless draft is no hindrance."""
    target = ToyModel(seed=5)
    lengths = {}
    for kind in ("dynamic", "always", "graft-suffix"):
        engine = drafted(target, graft(kind, target, ToyModel(seed=77)), rule=lambda: Fixed(4, (3, 2, 2)))
        generation = begin(n=80)
        run(engine, generation)
        lengths[kind] = generation.metrics.mean_acceptance_length
    assert lengths["always"] > 1.5 * lengths["dynamic"]
    assert lengths["graft-suffix"] > 1.5 * lengths["dynamic"]


def test_a_level_is_no_wider_than_the_draft_steps() -> None:
    draft = ToyModel(noise=0.3)
    draft.capabilities = replace(draft.capabilities, buckets=(1, 2, 4))
    target = ToyModel()
    engine = drafted(target, graft("dynamic", target, draft), rule=lambda: Fixed(5, (3, 3, 2)))
    widths: list[int] = []
    generation = begin(n=30)
    prompt = len(draft.widths)
    for _ in engine.run([generation]):
        widths += draft.widths[prompt + 1 :]  # the first read is of the context
        prompt = len(draft.widths)
    assert generation.tokens[len(CONTEXT) :] == target.greedy(CONTEXT, 30)
    assert max(widths) <= 4


def test_a_draft_without_room_leaves_the_budget_to_retrieval() -> None:
    target, draft = ToyModel(), ToyModel(max_context=3)
    engine = drafted(target, graft("graft", target, draft), rule=lambda: Fixed(4, (3, 2)))
    generation = begin()
    assert run(engine, generation) == [target.greedy(CONTEXT, 40)]
    assert {*generation.metrics.drafted_by} == {"recycle"}


def test_rounds_are_recorded_for_calibration() -> None:
    rounds: list[DraftedRound] = []
    target = ToyModel()
    engine = drafted(target, graft("dynamic", target, record=rounds.append), rule=lambda: Fixed(4, (3, 2)))
    generation = begin()
    run(engine, generation)
    assert sum(r.accepted for r in rounds) == generation.metrics.num_accepted_tokens
    assert len(rounds) == generation.metrics.num_drafts
    assert all(0 < b <= a <= 1 for r in rounds for a, b in zip(r.best, r.best[1:], strict=False))


def propose_with(kind: str) -> object:
    """A drafter for the tables of the acceptance tests, fresh in every run."""
    draft = ToyModel(vocab=VOCAB, noise=1.0, sharpness=1.0)
    top = np.asarray([[1, 0], [2, 1], [0, 2]])
    learnt = Outcome(9, TokenTree((1, 2), (-1, -1)), (), root=0, top=top)

    def propose(context: Sequence[int], depth: int, sampler: Sampler) -> TokenTree:
        retrieval = RecycleDrafter(VOCAB, 2)
        variant = ALWAYS if kind == "always" else VARIANTS.get(kind, VARIANTS["graft"])
        drafter: Drafter = GraftDrafter(ModelLevels(draft, VOCAB), [retrieval], variant)
        if kind == "recycle":
            drafter = retrieval
        retrieval.observe([learnt])
        plan = Plan(depth) if kind == "chain" else Plan(depth, (3, 1))
        return drafter.propose([DraftRequest(0, list(context), plan, sampler)])[0]

    return propose


@pytest.mark.parametrize("params", [PARAMS[0], PARAMS[2], PARAMS[5]], ids=str)
@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.name)
@pytest.mark.parametrize("kind", [*VARIANTS, "always", "chain", "recycle"])
def test_the_law_is_that_of_plain_decoding(kind: str, rule: object, params: SamplingParams) -> None:
    law, mean = law_of_round(rule, propose_with(kind), 2, params)  # type: ignore[arg-type]
    assert_same_law(law, reference.plain_law(oracle(params), PROMPT, 3))
    assert mean > 1.05 or kind == "chain"
