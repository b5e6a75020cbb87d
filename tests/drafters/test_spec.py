"""Draft expressions: what they mean, and what cannot be read."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support import toy_pipeline
from support.toy_model import ToyModel

from specport.core.planning.planner import Planner
from specport.core.planning.step_costs import StepCosts
from specport.core.ports import Drafter, DraftRequest, Plan
from specport.core.sampling.sampler import Sampler, SamplingParams
from specport.drafters.spec import DraftModel, build, exit_in, models_in, parse
from specport.errors import InvalidInput, ModelError


@pytest.mark.parametrize(
    ("expression", "parts"),
    [
        ("none", []),
        ("auto", ["ngram"]),
        ("ngram", ["ngram"]),
        ("org/name", ["model:org/name"]),
        ("model:C:\\drafts\\one", ["model:C:\\drafts\\one"]),
        ("ngram|org/name", ["ngram", "model:org/name"]),
        (" ngram | model:x ", ["ngram", "model:x"]),
        ("suffix", ["suffix"]),
        ("suffix|ngram", ["suffix", "ngram"]),
        ("suffix|org/name", ["suffix", "model:org/name"]),
        ("recycle | graft( model:x )", ["recycle", "graft:x"]),
        ("universal(org/name)", ["universal:org/name"]),
        ("model(x)", ["model:x"]),
        ("a(1)/model.gguf", ["model:a(1)/model.gguf"]),
        ("ngram|early-exit:12", ["ngram", "early-exit:12"]),
        ("early-exit", ["early-exit:"]),
    ],
)
def test_expressions(expression: str, parts: list[str]) -> None:
    assert parse(expression) == parts


@pytest.mark.parametrize(
    "expression",
    [
        "", "|", "ngram|", "|x", "auto|x", "x|none", "model:", "ngram||x", "graft()", "graft(ngram)",
        "early-exit:0", "early-exit:-1", "early-exit:two",
    ],
)  # fmt: skip
def test_unreadable_expressions(expression: str) -> None:
    with pytest.raises(InvalidInput, match="draft expression"):
        parse(expression)


def test_a_target_has_one_exit() -> None:
    with pytest.raises(InvalidInput, match="two exits"):
        parse("early-exit:3|ngram|early-exit:5")
    assert exit_in(parse("early-exit|ngram")) == 0 and exit_in(parse("early-exit:5")) == 5
    with pytest.raises(InvalidInput, match="without an early exit"):
        build(parse("early-exit:2"), ToyModel(), Tokenizer(), lambda spec: None, planned=True, costs=COSTS)  # type: ignore
    assert exit_in(parse("ngram")) is None and models_in(parse("early-exit:5|x")) == ["x"]


class Tokenizer(toy_pipeline.ToyTokenizer):
    def __init__(self, wrong: str | None = None) -> None:
        self.wrong = wrong

    def mismatch(self, other: object) -> str | None:
        return self.wrong


COSTS = StepCosts.prior({1: 1.0, 8: 1.5})


def build_(parts: list[str], load: Callable[[str], DraftModel], planned: bool = True) -> Drafter | None:
    return build(parts, ToyModel(), Tokenizer(), load, planned=planned, costs=COSTS)  # type: ignore[arg-type]


EXPRESSIONS = {
    "ngram": "ngram", "x": "model", "ngram|x": "ngram|model", "suffix": "suffix", "suffix|x": "suffix|model",
    "suffix|ngram|x": "suffix|ngram|model", "recycle": "recycle", "recycle|universal(x)": "recycle|model",
    "graft(model:x)": "graft(model)", "suffix|graft(x)": "suffix|graft(model)",
}  # fmt: skip


def test_built_drafters_name_their_parts_once() -> None:
    def load(spec: str) -> DraftModel:
        return DraftModel(ToyModel(), Tokenizer(), spec, COSTS)  # type: ignore[arg-type]

    for expression, name in EXPRESSIONS.items():
        for planned in (True, False):
            drafter = build_(parse(expression), load, planned)
            assert drafter is not None and drafter.name == name
            assert isinstance(drafter, Planner) == planned
    assert build_([], load) is None


def test_a_planner_knows_what_was_measured_of_a_draft() -> None:
    """By that a poor one is not even asked, and any other is."""
    for reach, proposes in (((0.1,), False), ((0.9,), True), ((), True)):
        draft = DraftModel(ToyModel(), Tokenizer(), "x", COSTS, reach=reach)  # type: ignore[arg-type]
        for expression in ("x", "graft(x)"):
            drafter = build_(parse(expression), lambda _, draft=draft: draft, True)
            assert drafter is not None
            request = DraftRequest(0, [1, 2, 3, 4, 5], Plan(4), Sampler(SamplingParams()))
            assert bool(len(drafter.propose([request])[0])) == proposes


def suffix_first_token(expression: str, planned: bool, context: list[int]) -> tuple[str, ...]:
    """Who proposes behind `context`."""
    drafter = build_(
        parse(expression),
        lambda spec: DraftModel(ToyModel(), Tokenizer(), spec, COSTS),  # type: ignore[arg-type]
        planned,
    )
    assert drafter is not None
    (tree,) = drafter.propose([DraftRequest(0, context, Plan(4), Sampler(SamplingParams()))])
    return tree.sources


def test_before_a_model_only_likely_suffixes_are_drafted() -> None:
    weak, strong = [1, 2, 3, 4, 1], [*range(10), *range(9)]
    assert suffix_first_token("suffix", False, weak)[0] == "suffix"
    assert suffix_first_token("suffix|x", False, weak)[0] == "model"
    assert suffix_first_token("suffix|x", False, strong)[0] == "suffix"


@pytest.mark.parametrize("tree", [True, False])
def test_a_planner_gets_suffix_trees_where_the_target_takes_them(tree: bool) -> None:
    drafter = build(
        ["suffix"], ToyModel(tree=tree), Tokenizer(), lambda spec: None, planned=True, costs=COSTS
    )  # type: ignore
    assert drafter is not None
    context = [3, 4, 3, 5, 3, 6, 3]  # each as likely as the others
    (drafted,) = drafter.propose([DraftRequest(0, context, Plan(4), Sampler(SamplingParams()))])
    assert drafted.is_chain != tree


def test_another_tokenizer_is_refused_and_the_mismatch_named() -> None:
    def load(spec: str) -> DraftModel:
        return DraftModel(ToyModel(), Tokenizer("token 5 is 'a' and 'b'"), spec, COSTS)  # type: ignore[arg-type]

    with pytest.raises(ModelError, match=r"other tokenizer.*token 5"):
        build_(["model:x"], load)
