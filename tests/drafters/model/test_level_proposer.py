"""A draft model as a source of levels: probabilities of the right paths, each read once."""

from __future__ import annotations

import numpy as np
import pytest
from support.generations import begin, drafted, run
from support.toys.toy_model import ToyModel

from specport.core.policies.length_rules import Fixed
from specport.core.ports import DraftRequest, Plan
from specport.core.sampling.params import SamplingParams
from specport.core.sampling.sampler import Sampler
from specport.drafters.model.expand import Expansion
from specport.drafters.retrieval.recycle import RecycleDrafter
from specport.drafters.tree.graft import GraftDrafter
from specport.drafters.tree.level_proposer import ModelLevels

CONTEXT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]


def request(context: list[int], plan: Plan, **params: float) -> DraftRequest:
    return DraftRequest(0, context, plan, Sampler(SamplingParams(**params)))  # type: ignore[arg-type]


@pytest.mark.parametrize("sampled", [False, True])
def test_a_draft_model_gives_its_likeliest_children(sampled: bool) -> None:
    draft = ToyModel()
    source = ModelLevels(draft, 11)
    params = {"temperature": 0.7} if sampled else {}
    tree = Expansion(request=request([2, 3], Plan(3), **params))
    ((children,),) = source.expand([tree], 4)
    logits = draft.table[2, 3].astype(float) / params.get("temperature", 1.0)
    chances = np.exp(logits) / np.exp(logits).sum()
    best = np.argsort(-logits)[:4]
    assert [token for token, _ in children] == best.tolist()
    assert [chance for _, chance in children] == pytest.approx(chances[best].tolist(), rel=1e-4)


def test_levels_read_each_path_as_if_it_were_the_text() -> None:
    draft = ToyModel()
    source, tree = ModelLevels(draft, 11), Expansion(request=request([2, 3], Plan(4, (3,))))
    for _ in range(3):
        level = source.expand([tree], 3)[0]
        added = [
            (tree.add(node, *child), node)
            for node, children in zip(tree.frontier, level, strict=True)
            for child in children
        ]
        for node, parent in added:
            text = [2, 3, *tree.path_tokens(parent)]
            chances = np.exp(draft.table[text[-2], text[-1]].astype(float))
            expected = chances[tree.tokens[node]] / chances.sum()
            assert tree.confidence[node] == pytest.approx(expected, rel=1e-4)
        tree.frontier = [node for node, _ in added][:3]
        tree.num_levels += 1
    assert draft.widths == [2, 3, 4]  # the third level's paths share their first node, which is read once


def test_a_cut_head_speaks_target_ids() -> None:
    cut = [8, 3, 1, 10, 6, 9, 4]
    small = ToyModel(noise=0.4)
    small.table = small.table[:, :, cut]
    target = ToyModel()
    for params in (SamplingParams(), SamplingParams(repetition_penalty=1.2), SamplingParams(temperature=0.9)):
        source = ModelLevels(small, 11, cut)
        tree = Expansion(request=DraftRequest(0, [2, 3], Plan(2), Sampler(params)))
        ((children,),) = source.expand([tree], 7)
        assert {token for token, _ in children} == {*cut}
        assert sum(chance for _, chance in children) == pytest.approx(1.0, rel=1e-4)
    drafter = GraftDrafter(ModelLevels(small, 11, cut), [RecycleDrafter(11)])
    engine = drafted(target, drafter, rule=lambda: Fixed(4, (3, 2)))
    assert run(engine, begin()) == [target.greedy(CONTEXT, 40)]
