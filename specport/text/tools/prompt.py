"""Bring tools, calls and results into a conversation, as the model's chat template wants them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from specport.text.tools.definitions import Tool
from specport.text.tools.syntax import GENERIC

Message = Mapping[str, Any]
_INSTRUCTIONS = """\
You may call functions to answer the user. These functions are available, one a line:
{tools}
To call one, write its name and its arguments as JSON between tags, and nothing behind the last call:
<tool_call>
{{"name": "function-name", "arguments": {{"argument": "value"}}}}
</tool_call>
The results come back between <tool_response> tags."""


def for_template(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return the messages as templates take them: contents are strings, arguments of calls are objects."""
    return [_message(message) for message in messages]


def as_text(messages: Sequence[Message], tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Return the messages for a template that knows no tools: all is text, in the GENERIC syntax."""
    out: list[dict[str, Any]] = []
    for message in for_template(messages):
        if message.get("role") == "tool":
            text = f"<tool_response>\n{message['content']}\n</tool_response>"
            if out and out[-1].get("results"):
                out[-1]["content"] += f"\n{text}"
            else:
                out.append({"role": "user", "content": text, "results": True})
            continue
        calls = message.pop("tool_calls", None) or []
        message["content"] = "\n".join([*filter(None, [message["content"]]), *map(_written, calls)])
        out.append(message)
    for message in out:
        message.pop("results", None)
    if not tools:
        return out
    lines = "\n".join(json.dumps(tool.as_openai()["function"], ensure_ascii=False) for tool in tools)
    text = _INSTRUCTIONS.format(tools=lines)
    if out and out[0].get("role") == "system":
        return [{**out[0], "content": f"{out[0]['content']}\n\n{text}"}, *out[1:]]
    return [{"role": "system", "content": text}, *out]


def _message(message: Message) -> dict[str, Any]:
    out = dict(message)
    content = out.get("content")
    if isinstance(content, Sequence) and not isinstance(content, str):  # parts, as OpenAI's API has them
        content = "".join(part.get("text", "") for part in content if isinstance(part, Mapping))
    out["content"] = "" if content is None else content
    if isinstance(calls := out.get("tool_calls"), Sequence) and calls:
        out["tool_calls"] = [_call(call) for call in calls]
    else:
        out.pop("tool_calls", None)
    return out


def _call(call: Any) -> Any:
    """Return a call whose arguments are an object: templates write them as JSON."""
    if not isinstance(call, Mapping) or not isinstance(function := call.get("function"), Mapping):
        return call
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            return call
    return {**call, "function": {**function, "arguments": arguments}}


def _written(call: Any) -> str:
    function = call.get("function", {}) if isinstance(call, Mapping) else {}
    body = {"name": function.get("name"), "arguments": function.get("arguments", {})}
    return f"{GENERIC.opening}\n{json.dumps(body, ensure_ascii=False)}\n{GENERIC.closing}"
