"""A grammar for the steps of a smolagents CodeAgent, so that a small model writes code that runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from smolagents.tools import Tool

from specport.agents.conversation import tool_schema
from specport.text.grammar.grammar import Grammar

MAX_ITEMS, MAX_TERMS = 5, 5
_FINAL = "final_answer"
_CONTROL = r"\x00-\x1f\x7f"  # characters that break a line of Python, or all of it


def code_step(
    tools: Iterable[Tool], tags: tuple[str, str] = ("<code>", "</code>"), *, longest: int = 160
) -> Grammar:
    """Return the grammar of one step: a thought, and one line of Python that prints a result.

    The line calls one tool with literal arguments, or computes with numbers, or gives the final answer. Which
    of them, and with what, is the model's choice. `maxLength`, `maxItems`, `items` and `enum` of a tool's
    inputs are kept; lists have at most 5 items where nothing is said.

    tags:    the agent's `code_block_tags`.
    longest: most characters of the thought, and of strings where a tool says nothing.
    """
    calls = {tool.name: _call(tool, longest) for tool in tools if tool.name != _FINAL}
    opening, closing = (json.dumps(tag, ensure_ascii=False) for tag in tags)
    names = [f"call_{i}" for i in range(len(calls))]
    lines = [*(f'"print(" {name} ")"' for name in names), '"print(" expression ")"', f'"{_FINAL}(" text ")"']
    return Grammar.lark(
        "\n".join(
            [
                f'start: "Thought: " THOUGHT "\\n" {opening} "\\n" line "\\n" {closing}',
                f"line: {' | '.join(lines)}",
                *(f"{name}: {call}" for name, call in zip(names, calls.values(), strict=True)),
                f"text: {_string({}, longest)}",
                f"THOUGHT: /[^<{_CONTROL}]{{1,{longest}}}/",
                f"expression: NUMBER (OPERATOR NUMBER){{1,{MAX_TERMS}}}",
                "OPERATOR: / [-+*\\/] /",
                "INTEGER: /-?(0|[1-9][0-9]{0,14})/",
                "NUMBER: /-?(0|[1-9][0-9]{0,14})(\\.[0-9]{1,10})?/",
            ]
        )
    )


def _call(tool: Tool, longest: int) -> str:
    """Return the rule of a call: all arguments by name, those that may be left out last."""
    parameters = tool_schema(tool)["function"]["parameters"]
    needed: list[str] = []
    others: list[str] = []
    for name, schema in parameters["properties"].items():
        rule = f'"{name}=" ({_literal(schema, longest)})'
        (needed if name in parameters["required"] else others).append(rule)
    separator = ' ", " '
    more = [f"({separator}{rule})?" for rule in others]
    if needed or not others:
        arguments = " ".join([separator.join(needed), *more])
    else:  # the first of those that are given has no comma before it
        arguments = f"({' | '.join(' '.join([rule, *more[i + 1 :]]) for i, rule in enumerate(others))})?"
    return f'"{tool.name}(" {arguments} ")"'


def _literal(schema: Mapping[str, Any], longest: int) -> str:
    """Return the rule of a Python literal."""
    if "enum" in schema:
        return " | ".join(json.dumps(repr(value), ensure_ascii=False) for value in schema["enum"])
    given = schema["type"]
    return " | ".join(
        _of_type(kind, schema, longest) for kind in ([given] if isinstance(given, str) else given)
    )


def _of_type(kind: str, schema: Mapping[str, Any], longest: int) -> str:
    if kind == "array":
        items = schema.get("items")
        item = _literal({"type": "string", **(items if isinstance(items, Mapping) else {})}, longest)
        most = max(1, int(schema.get("maxItems", MAX_ITEMS)))
        return f'"[" ({item}) (", " ({item})){{0,{most - 1}}} "]"'
    text = _string({}, longest)
    simple = {"integer": "INTEGER", "number": "NUMBER", "boolean": '"True" | "False"', "null": '"None"'}
    if kind == "object":
        entry = f'{text} ": " ({text} | NUMBER)'
        return f'"{{" ({entry} (", " {entry})*)? "}}"'
    return simple.get(kind) or _string(schema, longest)


def _string(schema: Mapping[str, Any], longest: int) -> str:
    """Return the rule of a string without escapes."""
    least, most = int(schema.get("minLength", 1)), int(schema.get("maxLength", longest))
    return f'/"[^"\\\\{_CONTROL}]{{{least},{most}}}"/'
