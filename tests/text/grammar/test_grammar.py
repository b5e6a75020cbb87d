"""Grammars from schemas, expressions and files: what is refused, and OpenAI's response_format."""

from __future__ import annotations

from typing import Any

import pytest

import specport
from specport.errors import InvalidInput
from specport.text.grammar import matcher
from specport.text.grammar.grammar import Grammar, from_response_format

WRONG: dict[str, tuple[Any, str]] = {
    "no JSON": (lambda: Grammar.json_schema('{"type": '), "the JSON schema is not JSON"),
    "no object": (lambda: Grammar.json_schema("[1]"), "a JSON schema is a JSON object"),
    "nothing": (lambda: Grammar.json_schema(False), "a JSON schema is a JSON object"),
    "type": (lambda: Grammar.json_schema({"type": "objekt"}), "Invalid type: objekt"),
    "keyword": (lambda: Grammar.json_schema({"not": {"type": "string"}}), 'Unimplemented keys: ["not"]'),
    "reference": (lambda: Grammar.json_schema({"$ref": "#/$defs/x"}), "does not exist"),
    "pattern": (lambda: Grammar.json_schema({"type": "string", "pattern": "(a"}), "unclosed group"),
    "not JSON's": (lambda: Grammar.json_schema({"enum": [{1, 2}]}), "cannot be written as JSON"),
    "deep": (lambda: Grammar.json_schema('{"items":' * 3000 + "{}" + "}" * 3000), "the JSON schema "),
    "expression": (lambda: Grammar.regex("a("), "the regular expression cannot be used: unclosed group"),
    "look-ahead": (lambda: Grammar.regex("(?=a)b"), "look-ahead"),
    "rule": (lambda: Grammar.lark('foo: "a"'), "the grammar cannot be used: no start rule found"),
    "syntax": (lambda: Grammar.lark('start: "a'), "lexer error"),
    "length": (lambda: Grammar.regex("a" * (1 << 21)), "characters"),
    "not unsatisfiable": (
        lambda: Grammar.json_schema({"type": "object", "required": ["a"], "additionalProperties": False}),
        "unsatisfiable",
    ),
}


@pytest.mark.parametrize(("make", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_used_is_refused_in_one_line(make: Any, message: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        make()
    assert message in str(raised.value) and "\n" not in str(raised.value) and len(str(raised.value)) < 500


def test_a_schema_may_be_given_as_text_or_object() -> None:
    assert Grammar.json_schema('{"type":"string"}') == Grammar.json_schema({"type": "string"})
    assert Grammar.json_schema(True).source == "{}"
    assert specport.Grammar is Grammar


def test_response_formats() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    given = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    assert from_response_format(given) == Grammar.json_schema(schema)
    assert from_response_format({"type": "json_object"}) == Grammar.json_object()
    assert from_response_format({"type": "text"}) is from_response_format(None) is None
    for wrong in (
        {"type": "xml"},
        {},
        "json",
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": 1},
    ):
        with pytest.raises(InvalidInput):
            from_response_format(wrong)  # type: ignore[arg-type]


def test_half_of_a_character() -> None:
    for make in (Grammar.regex, Grammar.lark, Grammar.json_schema, lambda text: Grammar.choice([text])):
        with pytest.raises(InvalidInput):
            make('start: "\ud800"')


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "llguidance", None)
    monkeypatch.setattr(matcher, "_llguidance", matcher._llguidance.__wrapped__)
    with pytest.raises(InvalidInput, match=r"pip install 'specport\[grammar\]'"):
        Grammar.json_object()
