"""Draft expressions: what they mean, what cannot be read, and that they are written as they are read."""

from __future__ import annotations

import shlex

import pytest

from specport.drafters import spec as module
from specport.drafters.spec import DraftSpec, PartSpec, parse
from specport.errors import InvalidInput

EXPRESSIONS = {
    "none": [],
    "auto": [PartSpec("suffix")],
    "ngram": [PartSpec("ngram")],
    "org/name": [PartSpec("model", "org/name")],
    "model:C:\\drafts\\one": [PartSpec("model", "C:\\drafts\\one")],
    "ngram|org/name": [PartSpec("ngram"), PartSpec("model", "org/name")],
    " ngram | model:x ": [PartSpec("ngram"), PartSpec("model", "x")],
    "suffix|ngram": [PartSpec("suffix"), PartSpec("ngram")],
    "recycle | graft( model:x )": [PartSpec("recycle"), PartSpec("graft", "x")],
    "universal(org/name)": [PartSpec("universal", "org/name")],
    "model(x)": [PartSpec("model", "x")],
    "a(1)/model.gguf": [PartSpec("model", "a(1)/model.gguf")],
    "universal(a(1)/model.gguf)": [PartSpec("universal", "a(1)/model.gguf")],
    "ngram|early-exit:12": [PartSpec("ngram"), PartSpec("early-exit", layer=12)],
    "early-exit": [PartSpec("early-exit", layer=0)],
    "model:ngram": [PartSpec("model", "ngram")],
    "graft(model:ngram)": [PartSpec("graft", "ngram")],
    "model:model:x": [PartSpec("model", "model:x")],
    '"/a|b/c"|x': [PartSpec("model", "/a|b/c"), PartSpec("model", "x")],
    'ngram | universal( "/a|b (1)" )|graft("x")': [
        PartSpec("ngram"),
        PartSpec("universal", "/a|b (1)"),
        PartSpec("graft", "x"),
    ],
    'model:"ngram"': [PartSpec("model", "ngram")],
    '"universal(x)"': [PartSpec("model", "universal(x)")],
    '/a"b|c"d': [PartSpec("model", '/a"b'), PartSpec("model", 'c"d')],
    "./with blank|x": [PartSpec("model", "./with blank"), PartSpec("model", "x")],
}


@pytest.mark.parametrize(("expression", "parts"), EXPRESSIONS.items())
def test_expressions(expression: str, parts: list[PartSpec]) -> None:
    spec = parse(expression)
    assert [*spec.parts] == parts
    assert bool(spec) == bool(parts) and spec.auto == (expression == "auto")
    assert parse(str(spec)) == spec
    assert spec.kinds == [part.kind for part in parts]


def test_the_shortest_way_of_writing_is_written() -> None:
    written = {"model(x)": "x", " ngram | model:x ": "ngram|x", "graft( model:x )": "graft(x)"}
    kept = [
        "none",
        "auto",
        "model:ngram",
        "graft(model:ngram)",
        "early-exit",
        "early-exit:3",
        "model:model:x",
    ]
    for expression, text in {**written, **dict(zip(kept, kept, strict=True))}.items():
        assert str(parse(expression)) == text


@pytest.mark.parametrize(
    ("expression", "why"),
    {
        "": "missing", "|": "missing", "ngram|": "missing", "|x": "missing", "ngram||x": "missing",
        "model:": "missing", "graft()": "missing", "auto|x": "stands alone", "x|none": "stands alone",
        "graft(ngram)": "names the drafter ngram", "graft": r"names the drafter graft\(MODEL\)",
        '""': "missing",
        "early-exit:0": "no number", "early-exit:-1": "no number", "early-exit:two": "no number",
    }.items(),
)  # fmt: skip
def test_unreadable_expressions(expression: str, why: str) -> None:
    with pytest.raises(InvalidInput, match=rf"draft expression.*{why}.*graft\(MODEL\), early-exit:E"):
        parse(expression)


def test_a_target_has_one_exit() -> None:
    with pytest.raises(InvalidInput, match="two exits"):
        parse("early-exit:3|ngram|early-exit:5")
    assert parse("early-exit|ngram").exit_layer == 0 and parse("early-exit:5").exit_layer == 5
    assert parse("ngram").exit_layer is None


def test_models_are_named_once() -> None:
    assert parse("x|ngram|graft(x)|universal(y)|early-exit:3").models == ["x", "y"]
    assert parse("suffix").models == []


def test_a_draft_joins_what_stands_there() -> None:
    joined = parse("auto").with_model("/drafts/one")
    assert str(joined) == "suffix|/drafts/one" and not joined.auto
    assert DraftSpec().with_model("x") == parse("x")


@pytest.mark.parametrize("path", ["./it's here", "a b", "$HOME", "x"])
def test_the_option_can_be_pasted_into_a_shell(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = parse(f"suffix|universal({path})")
    monkeypatch.setattr(module, "_WINDOWS", False)
    assert shlex.split(spec.option) == ["--draft", f"suffix|universal({path})"]
    monkeypatch.setattr(module, "_WINDOWS", True)
    assert spec.option == f'--draft "suffix|universal({path})"'
