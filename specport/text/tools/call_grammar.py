"""Grammars that hold a model to the syntax of its calls, and arguments to the tools' schemas."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from specport.errors import InvalidInput
from specport.text.grammar.grammar import SEPARATORS, Grammar
from specport.text.tools.definitions import AUTO, NONE, REQUIRED, Tool
from specport.text.tools.syntax import Syntax

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


def call_grammar(
    syntax: Syntax,
    tools: Sequence[Tool],
    choice: str,
    *,
    parallel: bool = True,
    special: Callable[[str], int | None] = lambda text: None,
) -> Grammar | None:
    """Return the grammar that a choice needs; None where the model may write what it wants.

    required or a name: one call or several. auto: any text, but a call that has begun is held to its syntax;
    only where a tool is strict.

    parallel: whether several calls may follow each other.
    special:  the id of a text that is one control token, else None.

    Raises InvalidInput where a strict tool's schema cannot be held.
    """
    if choice == NONE or (choice == AUTO and not any(tool.strict for tool in tools)):
        return None
    asked = [tool for tool in tools if choice in (AUTO, REQUIRED, tool.name)]
    open_, close = (_literal(marker, special) for marker in (syntax.opening, syntax.closing))
    blank = json.dumps(syntax.blank) if syntax.blank else ""
    rules = [_xml_body(asked)] if syntax.body == "xml" else [f"body: %json {_schema(syntax, asked)}"]
    call = f"{blank} body {blank} {close}"
    if syntax.array:
        more = ' (", " body)*' if parallel else ""
        call = f'"[" body{more} "]"'
    if choice != AUTO:
        start = _forced(syntax, call, open_, parallel=parallel)
        return Grammar.lark("\n".join([f"start: {start}", *rules, f"call: {call}"]))
    # Where a call may stand without a marker, a text that begins with a brace is a call.
    first = "([^{ \\n\\r\\t](.|\\n)*)?" if syntax.bare else "(.|\\n)*"
    rules += [f"call: {call}", f"FIRST: /{first}/", "TEXT: /(.|\\n)*/"]
    several = parallel and not syntax.array
    if open_.startswith("<["):
        start = f"FIRST ({open_} call TEXT){'*' if several else '?'}"
    else:
        start = f"FIRST | opened call {'(again call)*' if several else ''} TEXT"
        rules += [f"opened[lazy]: FIRST {open_}", f"again[lazy]: TEXT {open_}"]
    if syntax.bare:
        start += " | body"
    return Grammar.lark("\n".join([f"start: {start}", *rules]))


def _forced(syntax: Syntax, call: str, open_: str, *, parallel: bool) -> str:
    if syntax.name == "llama3":  # its template knows one call a message, without a marker
        return "body"
    if syntax.array or not parallel:
        return f"{open_} call"
    return f'{open_} call ("\\n" {open_} call)*'


def _literal(marker: str, special: Callable[[str], int | None]) -> str:
    """Return a marker in Lark's syntax: a control token, or text."""
    if not marker:
        return ""
    token = special(marker)
    return json.dumps(marker) if token is None else f"<[{token}]>"


def _schema(syntax: Syntax, tools: Sequence[Tool]) -> str:
    """Return the schema of a call of any of the tools."""
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": tool.name}, syntax.arguments: dict(_arguments(tool))},
            "required": ["name", syntax.arguments],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    definitions: dict[str, Any] = {}
    for call, tool in zip(calls, tools, strict=True):
        schema = call["properties"][syntax.arguments]  # type: ignore[index]
        for key in ("$defs", "definitions"):  # references start at the whole schema's root
            if isinstance(schema.get(key), Mapping):
                _add(definitions.setdefault(key, {}), schema.pop(key), tool)
    return json.dumps({"x-guidance": SEPARATORS, "anyOf": calls, **definitions}, ensure_ascii=False)


def _add(known: dict[str, Any], new: Mapping[str, Any], tool: Tool) -> None:
    for name, schema in new.items():
        if known.setdefault(name, schema) != schema:
            raise InvalidInput(
                f"tool {tool.name} defines {name} in another way than the tools before it", "rename it"
            )


def _arguments(tool: Tool) -> Mapping[str, Any]:
    """Return the schema that a tool's arguments are held to: any object where a lax tool's cannot be held."""
    schema = {"type": "object", **tool.parameters}
    try:
        Grammar.json_schema(schema)
    except InvalidInput as error:
        if tool.strict:
            raise InvalidInput(f"tool {tool.name} is strict, but {error}") from error
        return ANY_OBJECT
    return schema


def _xml_body(tools: Sequence[Tool]) -> str:
    """Return the rules of Qwen3-Coder's syntax: the required parameters in order, then any of the others."""
    rules = ["body: " + " | ".join(f"fun_{i}" for i in range(len(tools)))]
    # A string ends at its closing tag.
    rules += ["text[lazy]: /(.|\\n)*/ END", 'END: "\\n</parameter>\\n"']
    for i, tool in enumerate(tools):
        schema = _arguments(tool)
        given = schema.get("properties")
        properties: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
        needed = [key for key in schema.get("required", ()) if key in properties]
        others = [key for key in properties if key not in needed]
        names = {key: f"par_{i}_{k}" for k, key in enumerate(properties)}
        optional = f" ({' | '.join(names[key] for key in others)})*" if others else ""
        rules.append(
            f"fun_{i}: {json.dumps(f'<function={tool.name}>' + chr(10))} "
            f'{" ".join(names[key] for key in needed)}{optional} "</function>"'
        )
        for key, value in properties.items():
            head = json.dumps(f"<parameter={key}>\n", ensure_ascii=False)
            plain = not isinstance(value, Mapping) or value.get("type", "string") == "string"
            body = "text" if plain else f"%json {_inner(value, schema)} END"
            rules.append(f"{names[key]}: {head} {body}")
    return "\n".join(rules)


def _inner(value: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    return json.dumps({"x-guidance": SEPARATORS, **value, **shared}, ensure_ascii=False)
