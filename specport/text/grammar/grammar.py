"""A grammar as the user gives it. Plain data; `matcher` evaluates it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from specport.errors import InvalidInput
from specport.text.grammar import matcher

MAX_SOURCE = 1 << 20  # characters
# As json.dumps, which is what models mostly read and write. Fixed spaces also make the rest predictable.
SEPARATORS = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
_FIELDS = {"text": (), "json_object": ("schema",), "json_schema": ("json_schema",)}  # by type of the format
_NAMES = {"json_schema": "the JSON schema", "regex": "the regular expression", "lark": "the grammar"}


@dataclass(frozen=True)
class Grammar:
    """Hold the language of a text. Make one with `json_schema`, `json_object`, `regex` or `lark`.

    source:     the schema as JSON, the expression, or the grammar.
    whitespace: JSON only: whether any spaces and line breaks may stand between the parts. False = as
                json.dumps writes them.

    Raises InvalidInput where it cannot be used, with the reason.
    """

    kind: Literal["json_schema", "regex", "lark"]
    source: str
    whitespace: bool = False

    def __post_init__(self) -> None:
        name = _NAMES[self.kind]
        if len(self.source) > MAX_SOURCE:
            raise InvalidInput(f"{name} has {len(self.source)} characters; {MAX_SOURCE} are allowed")
        if any("\ud800" <= character <= "\udfff" for character in self.source):
            raise InvalidInput(f"{name} cannot be used: it has half of a character (a lone surrogate)")
        if problem := matcher.problem(self.compiled()):
            raise InvalidInput(f"{name} cannot be used: {problem}")

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | bool | str, *, whitespace: bool = False) -> Grammar:
        """Return the grammar of the JSON texts that are valid by a schema (an object, or JSON text).

        Keywords that cannot be held, such as "not" or "uniqueItems", are refused rather than ignored.
        """
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except (ValueError, RecursionError) as error:
                raise InvalidInput(f"the JSON schema is not JSON: {error}") from error
        if schema is True:
            schema = {}
        if not isinstance(schema, Mapping):
            raise InvalidInput("a JSON schema is a JSON object", 'as in {"type": "object"}')
        try:
            source = json.dumps(schema, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidInput(f"the JSON schema cannot be written as JSON: {error}") from error
        return cls("json_schema", source, whitespace)

    @classmethod
    def json_object(cls, *, whitespace: bool = False) -> Grammar:
        """Return the grammar of all JSON objects."""
        return cls.json_schema({"type": "object"}, whitespace=whitespace)

    @classmethod
    def regex(cls, expression: str) -> Grammar:
        """Return the grammar of the texts that match a regular expression as a whole.

        The syntax is that of Rust's regex crate: no look-around, no back-references.
        """
        return cls("regex", expression)

    @classmethod
    def lark(cls, grammar: str) -> Grammar:
        """Return a grammar in llguidance's variant of Lark; its rule `start` is the whole text."""
        return cls("lark", grammar)

    @classmethod
    def choice(cls, texts: Sequence[str]) -> Grammar:
        """Return the grammar of these texts and no others."""
        if not texts or not all(texts):
            raise InvalidInput("a choice needs texts that are not empty")
        return cls.lark("start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts))

    def compiled(self) -> str:
        """Return the grammar as `matcher` takes it. Raises InvalidInput."""
        if self.kind == "json_schema":
            options = {"whitespace_flexible": True} if self.whitespace else SEPARATORS
            return matcher.from_json_schema(self.source, options)
        return matcher.from_regex(self.source) if self.kind == "regex" else matcher.from_lark(self.source)


def from_response_format(value: Mapping[str, Any] | None) -> Grammar | None:
    """Return the grammar of an OpenAI `response_format`; None for {"type": "text"} and for None.

    A json_object may have a schema, as in llama.cpp's server.

    Raises InvalidInput for other types and fields, and for schemas that cannot be used.
    """
    kind = value.get("type") if isinstance(value, Mapping) else None
    if value is None:
        return None
    if not isinstance(kind, str) or kind not in _FIELDS:
        raise InvalidInput(f"response_format is of type {kind!r}", "use text, json_object or json_schema")
    _only(value, ("type", *_FIELDS[kind]), "response_format")
    if kind == "text":
        return None
    if kind == "json_object":
        schema = value.get("schema")
        return Grammar.json_object() if schema is None else Grammar.json_schema(schema)
    inner = value.get("json_schema")
    schema = inner.get("schema") if isinstance(inner, Mapping) else None
    if inner is None or schema is None:
        raise InvalidInput("response_format has no json_schema.schema")
    _only(inner, ("name", "description", "schema", "strict"), "response_format.json_schema")
    return Grammar.json_schema(schema)


def _only(value: Mapping[str, Any], known: Sequence[str], name: str) -> None:
    """Raise InvalidInput for a field that would have no effect."""
    for field in value:
        if field not in known:
            raise InvalidInput(f"{name} has no field {field!r}")
