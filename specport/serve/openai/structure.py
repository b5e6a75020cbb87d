"""What an answer is held to, and which tools it may call, as a request says it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from specport.serve.openai.errors import bad_request, naming
from specport.serve.openai.schema import ChatRequest, Request
from specport.text.grammar.grammar import Grammar, from_response_format
from specport.text.tools.definitions import NONE, parse_choice, parse_tools


def held_to(request: Request) -> Grammar | None:
    """Return the grammar that a request asks for; None = any text. Raises ApiError."""
    found = naming("response_format", lambda: from_response_format(request.response_format))
    asked = request.structured_outputs
    if asked is None:
        return found
    kinds: list[tuple[Any, Callable[[Any], Grammar]]] = [
        (asked.json_, Grammar.json_schema), (asked.regex, Grammar.regex), (asked.grammar, Grammar.lark),
        (asked.choice, Grammar.choice),
    ]  # fmt: skip
    given = [(value, make) for value, make in kinds if value is not None]
    if len(given) != 1 or found is not None:
        raise bad_request("an answer is held to one grammar only", "structured_outputs", "invalid_value")
    ((value, make),) = given
    return naming("structured_outputs", lambda: make(value))


def tools_of(request: ChatRequest) -> dict[str, Any]:
    """Return the options for tools. Raises ApiError."""
    tools = request.tools or []
    known = naming("tools", lambda: parse_tools(tools))
    if request.tool_choice not in (None, NONE) and not known:
        raise bad_request("tool_choice needs tools", "tool_choice", "invalid_value")
    naming("tool_choice", lambda: parse_choice(request.tool_choice, known))
    return {
        "tools": tuple(tools),
        "tool_choice": request.tool_choice,
        "parallel_tool_calls": request.parallel_tool_calls is not False,
    }
