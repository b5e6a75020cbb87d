"""From a draft expression to a policy: who drafts, how it was set up, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
from support.toys.toy_model import ToyModel

from specport.core.planning.planner import Planner
from specport.core.planning.step_costs import StepCosts
from specport.core.policies.drafting import Drafting
from specport.core.policies.first_proposal import FirstProposal
from specport.core.ports import DraftRequest, Plan, Policy
from specport.core.sampling.params import SamplingParams
from specport.core.sampling.sampler import Sampler
from specport.drafters.build import build_policy
from specport.drafters.context import DraftModel
from specport.drafters.spec import parse
from specport.errors import InvalidInput, ModelError

COSTS = StepCosts.prior({1: 1.0, 8: 1.5})
PLANNED, FIXED = Drafting(), Drafting("fixed", 4)


class Tokenizer:
    """Is only compared before a draft is loaded."""


def build(
    expression: str,
    drafting: Drafting = PLANNED,
    *,
    wrong: str | None = None,
    target: ToyModel | None = None,
    reach: tuple[float, ...] = (),
) -> Policy | None:
    spec = parse(expression)
    tokenizer: Any = Tokenizer()
    drafts = {
        m: DraftModel(ToyModel(), tokenizer, f"name of {m}", COSTS, reach=reach, mismatch=wrong)
        for m in spec.models
    }
    return build_policy(spec, target or ToyModel(), tokenizer, drafts, drafting=drafting, costs=COSTS)


def request(context: list[int], depth: int = 4) -> DraftRequest:
    return DraftRequest(0, context, Plan(depth), Sampler(SamplingParams()))


@pytest.mark.parametrize(
    ("expression", "name"),
    {
        "ngram": "ngram", "x": "model", "ngram|x": "ngram|model", "suffix": "suffix",
        "suffix|x": "suffix|model", "suffix|ngram|x": "suffix|ngram|model", "recycle": "recycle",
        "recycle|universal(x)": "recycle|model", "graft(model:x)": "graft(model)",
        "suffix|graft(x)": "suffix|graft(model)", "x|graft(x)": "model|graft(model)",
    }.items(),
)  # fmt: skip
def test_policies_name_their_drafters(expression: str, name: str) -> None:
    for drafting, kind in ((PLANNED, Planner), (FIXED, FirstProposal)):
        policy = build(expression, drafting)
        assert policy is not None and policy.name == name and isinstance(policy, kind)


def test_plain_decoding_has_no_policy() -> None:
    assert build("none") is None and build("none", FIXED) is None


@pytest.mark.parametrize("drafting", [Drafting(num_draft_tokens=2), Drafting("fixed", 2)])
def test_a_policy_drafts_as_deep_as_it_is_told(drafting: Drafting) -> None:
    policy = build("ngram", drafting)
    assert policy is not None
    (tree,) = policy.draft([request([*range(11), *range(11)], 8)])
    assert len(tree) == 2


def test_branches_are_drafted_where_the_target_takes_trees() -> None:
    for tree in (True, False):
        policy = build("x", Drafting("fixed", 3, (2,)), target=ToyModel(tree=tree))
        assert policy is not None
        (drafted,) = policy.draft([request([1, 2, 3])])
        assert drafted.is_chain != tree


def test_a_planner_knows_what_was_measured_of_a_draft() -> None:
    """By that a poor one is not even asked, and any other is."""
    for reach, proposes in (((0.1,), False), ((0.5,), True), ((0.9,), True), ((), True)):
        for expression in ("x", "graft(x)"):
            policy = build(expression, reach=reach)
            assert policy is not None
            assert bool(len(policy.draft([request([1, 2, 3, 4, 5])])[0])) == proposes


def sources(expression: str, context: list[int]) -> tuple[str, ...]:
    """Return who proposes behind `context`."""
    policy = build(expression, FIXED)
    assert policy is not None
    return policy.draft([request(context)])[0].sources


def test_before_a_model_only_likely_matches_are_drafted() -> None:
    weak, strong = [1, 2, 3, 4, 1], [*range(10), *range(9)]
    for kind in ("suffix", "ngram"):
        assert sources(kind, weak)[0] == kind
        assert sources(f"{kind}|x", weak)[0] == "model"
        assert sources(f"{kind}|x", strong)[0] == kind
        assert sources(f"x|{kind}", weak)[0] == "model"
        assert sources(f"{kind}|recycle", weak)[0] == kind


@pytest.mark.parametrize("tree", [True, False])
def test_a_planner_gets_suffix_trees_where_the_target_takes_them(tree: bool) -> None:
    policy = build("suffix", target=ToyModel(tree=tree))
    assert policy is not None
    (drafted,) = policy.draft([request([3, 4, 3, 5, 3, 6, 3])])  # each as likely as the others
    assert drafted.is_chain != tree


def test_an_exit_that_the_target_lacks_is_refused() -> None:
    with pytest.raises(InvalidInput, match="without an early exit"):
        build("early-exit:2")


@pytest.mark.parametrize(
    ("expression", "hint"),
    [
        ("./other draft", "--draft 'universal(./other draft)'"),
        ("suffix|graft(../x)|y", "--draft 'suffix|universal(../x)|y'"),
    ],
)
def test_another_tokenizer_is_refused_with_a_command_that_can_be_pasted(
    expression: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hint names the model as the user did, not as its folder is called."""
    monkeypatch.setattr("specport.drafters.spec._WINDOWS", False)
    with pytest.raises(ModelError, match=r"name of .* has another tokenizer.*token 5") as error:
        build(expression, wrong="token 5 is 'a' and 'b'")
    assert error.value.hint.endswith(f"or {hint}")
    assert not re.search("universal.name of", error.value.hint)
