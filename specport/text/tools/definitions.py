"""Tools and the choice among them, as OpenAI's API names them. Plain data, checked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from specport.errors import InvalidInput

MAX_TOOLS = 128
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_SHAPE = 'a tool is {"type": "function", "function": {"name": ..., "parameters": {...}}}'
AUTO, NONE, REQUIRED = "auto", "none", "required"


@dataclass(frozen=True)
class Tool:
    """Hold a function that a model may call.

    parameters: JSON schema of its arguments.
    strict:     whether the arguments are held to the schema in any case.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})
    strict: bool = False

    def as_openai(self) -> dict[str, Any]:
        """Return the tool as chat templates take it."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class ToolCall:
    """Hold a call that a model has written. arguments: a JSON object, as text."""

    id: str
    name: str
    arguments: str

    def as_openai(self) -> dict[str, Any]:
        """Return the call as a message's `tool_calls` has it."""
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }


def parse_tools(tools: Sequence[Mapping[str, Any]]) -> tuple[Tool, ...]:
    """Return the tools of a request. Raises InvalidInput where one cannot be used."""
    if isinstance(tools, str | Mapping) or not isinstance(tools, Sequence):
        raise InvalidInput("tools is not a list", _SHAPE)
    if len(tools) > MAX_TOOLS:
        raise InvalidInput(f"{len(tools)} tools were given; at most {MAX_TOOLS} are allowed")
    found = tuple(_tool(tool) for tool in tools)
    names = [tool.name for tool in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InvalidInput(f"two tools are named {twice}")
    return found


def parse_choice(choice: str | Mapping[str, Any] | None, tools: Sequence[Tool]) -> str:
    """Return AUTO, NONE, REQUIRED, or the name of the tool that must be called. Raises InvalidInput."""
    if choice is None:
        return AUTO if tools else NONE
    if isinstance(choice, Mapping):
        inner = choice.get("function", choice)
        name = inner.get("name") if isinstance(inner, Mapping) else None
        if not any(tool.name == name for tool in tools):
            raise InvalidInput(f"tool_choice names {name!r}, which is not among the tools")
        return str(name)
    if choice not in (AUTO, NONE, REQUIRED):
        raise InvalidInput(f"tool_choice is {choice!r}", 'use "auto", "none", "required" or a function')
    if choice == REQUIRED and not tools:
        raise InvalidInput("tool_choice is required, but there are no tools")
    return choice


def _tool(tool: Any) -> Tool:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or tool.get("type", "function") != "function":
        raise InvalidInput("a tool is no function", _SHAPE)
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidInput(f"a tool is named {name!r}; use letters, digits and . _ -")
    # A name that is a choice could not be chosen.
    if name in (AUTO, NONE, REQUIRED):
        raise InvalidInput(f"a tool cannot be named {name!r}")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise InvalidInput(f"the parameters of tool {name} are no JSON schema")
    fields: dict[str, Any] = {} if parameters is None else {"parameters": parameters}
    return Tool(
        name, str(function.get("description") or ""), strict=bool(function.get("strict")), **fields
    )  # fmt: skip
