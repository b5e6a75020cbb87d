"""Read the body of one call, a character at a time: a JSON object, a name with JSON, or Qwen's XML."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Protocol

from specport.text.tools.definitions import Tool
from specport.text.tools.json_value import JsonValue, Step

_BLANK = " \t\r\n"
_ARGUMENTS = ("arguments", "parameters")


class Body(Protocol):
    """Read one call. `name` is set once it is known to be a tool's and the arguments have begun.

    arguments: the text of the arguments so far; it only grows.
    """

    name: str
    arguments: str

    def feed(self, char: str) -> Step:
        """Read one character: MORE, DONE with it, or BAD."""
        ...


class JsonBody:
    """Read {"name": ..., "arguments": {...}}, in any order and with other keys; see `Body`.

    Arguments may also be a string that holds the object, as some models write them.
    """

    def __init__(self, tools: Mapping[str, Tool]) -> None:
        self.name = self.arguments = ""
        self._tools = tools
        self._called = ""  # the name as read
        self._given: str | None = None  # the arguments, read whole or so far
        self._expected = "{"  # {, key or }, key, colon, value, next
        self._key = self._text = ""
        self._value = JsonValue()

    def feed(self, char: str) -> Step:
        if self._expected in ("in key", "in value"):
            step = self._value.feed(char)
            if step in (Step.MORE, Step.DONE):
                self._text += char
                if self._streams():
                    self._given = self._text
                    self._publish()
            if step in (Step.MORE, Step.BAD):
                return step
            good = self._key_read() if self._expected == "in key" else self._value_read()
            if not good:
                return Step.BAD
            return Step.MORE if step == Step.DONE else self.feed(char)
        if char in _BLANK:
            return Step.MORE
        return self._structure(char)

    def _structure(self, char: str) -> Step:
        if self._expected == "{":
            self._expected = "key or }"
            return Step.MORE if char == "{" else Step.BAD
        if char == "}" and self._expected in ("key or }", "next"):
            return self._ended()
        if char == "," and self._expected == "next":
            self._expected = "key"
            return Step.MORE
        if char == ":" and self._expected == "colon":
            self._expected = "value"
            return Step.MORE
        if self._expected == "value" or (char == '"' and self._expected in ("key", "key or }")):
            self._expected = "in value" if self._expected == "value" else "in key"
            self._value, self._text = JsonValue(), ""
            return self.feed(char)
        return Step.BAD

    def _streams(self) -> bool:
        return self._expected == "in value" and self._key in _ARGUMENTS and self._text.startswith("{")

    def _key_read(self) -> bool:
        self._key, self._expected = json.loads(self._text), "colon"
        return not (self._key in _ARGUMENTS and self._given is not None)

    def _value_read(self) -> bool:
        self._expected = "next"
        if self._key == "name":
            called = _value(self._text)  # it may be of any type
            if not isinstance(called, str) or called not in self._tools or self.name:
                return False
            self._called = called
            self._publish()
        elif self._key in _ARGUMENTS and not self._text.startswith("{"):
            held = _value(self._text)
            if self._text != "null" and not (isinstance(held, str) and is_object(held)):
                return False
            self._given = held if isinstance(held, str) else "{}"
            self._publish()
        return True

    def _publish(self) -> None:
        if self._called and self._given is not None:
            self.name, self.arguments = self._called, self._given

    def _ended(self) -> Step:
        if not self._called:
            return Step.BAD
        self._given = self._given or "{}"
        self._publish()
        return Step.DONE


class NamedBody:
    """Read NAME{...} or NAME[ARGS]{...}, as Mistral's later models write calls; see `Body`."""

    def __init__(self, tools: Mapping[str, Tool]) -> None:
        self.name = self.arguments = ""
        self._tools = tools
        self._head = ""
        self._value = JsonValue()

    def feed(self, char: str) -> Step:
        if not self.name:
            if char != "{":
                self._head += char
                return Step.MORE if len(self._head) < 512 else Step.BAD
            name = self._head.removesuffix("[ARGS]").strip()
            if name not in self._tools:
                return Step.BAD
            self.name = name
        step = self._value.feed(char)
        if step != Step.BAD:
            self.arguments += char
        return step


class XmlBody:
    """Read <function=NAME> with <parameter=KEY> values, as Qwen3-Coder writes calls; see `Body`.

    A value is text. The tool's schema says whether it stands for a JSON value instead.
    """

    _PARAMETER = re.compile(r"\s*<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL)

    def __init__(self, tools: Mapping[str, Tool]) -> None:
        self.name = self.arguments = ""
        self._tools = tools
        self._text = ""

    def feed(self, char: str) -> Step:
        self._text += char
        if not self._text.endswith("</function>"):
            begins = self._text[:10]
            return Step.MORE if "<function="[: len(begins)] == begins else Step.BAD
        name, _, rest = self._text.removeprefix("<function=").partition(">")
        tool = self._tools.get(name)
        if tool is None:
            return Step.BAD
        rest, values, position = rest.removesuffix("</function>"), {}, 0
        while found := self._PARAMETER.match(rest, position):
            values[found[1]] = _typed(tool, found[1], found[2])
            position = found.end()
        if rest[position:].strip():
            return Step.BAD
        self.name, self.arguments = name, json.dumps(values, ensure_ascii=False)
        return Step.DONE


def _typed(tool: Tool, key: str, text: str) -> object:
    properties = tool.parameters.get("properties")
    schema = properties.get(key) if isinstance(properties, Mapping) else None
    if isinstance(schema, Mapping) and schema.get("type") == "string":
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _value(text: str) -> object:
    """Return the value of a JSON text; None where Python cannot hold it, as a number of 5,000 digits."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def is_object(text: str) -> bool:
    """Return whether a text is one JSON object."""
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
