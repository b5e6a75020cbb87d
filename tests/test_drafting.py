"""Draft expressions: what they mean, and what cannot be read."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import toy_pipeline
from toy_model import ToyModel

from specport.core.costs import StepCosts
from specport.core.planner import Planner
from specport.core.ports import Drafter
from specport.drafting import DraftModel, build, parse
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
    ],
)
def test_expressions(expression: str, parts: list[str]) -> None:
    assert parse(expression) == parts


@pytest.mark.parametrize("expression", ["", "|", "ngram|", "|x", "auto|x", "x|none", "model:", "ngram||x"])
def test_unreadable_expressions(expression: str) -> None:
    with pytest.raises(InvalidInput, match="draft expression"):
        parse(expression)


class Tokenizer(toy_pipeline.ToyTokenizer):
    def __init__(self, wrong: str | None = None) -> None:
        self.wrong = wrong

    def mismatch(self, other: object) -> str | None:
        return self.wrong


COSTS = StepCosts.prior({1: 1.0, 8: 1.5})


def build_(parts: list[str], load: Callable[[str], DraftModel], planned: bool = True) -> Drafter | None:
    return build(parts, ToyModel(), Tokenizer(), load, planned=planned, costs=COSTS)  # type: ignore[arg-type]


def test_built_drafters_name_their_parts_once() -> None:
    def load(spec: str) -> DraftModel:
        return DraftModel(ToyModel(), Tokenizer(), spec, COSTS)  # type: ignore[arg-type]

    for expression, name in (("ngram", "ngram"), ("x", "model"), ("ngram|x", "ngram|model")):
        for planned in (True, False):
            drafter = build_(parse(expression), load, planned)
            assert drafter is not None and drafter.name == name
            assert isinstance(drafter, Planner) == planned
    assert build_([], load) is None


def test_another_tokenizer_is_refused_and_the_mismatch_named() -> None:
    def load(spec: str) -> DraftModel:
        return DraftModel(ToyModel(), Tokenizer("token 5 is 'a' and 'b'"), spec, COSTS)  # type: ignore[arg-type]

    with pytest.raises(ModelError, match=r"other tokenizer.*token 5"):
        build_(["model:x"], load)
