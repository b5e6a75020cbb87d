"""Bring tools, calls and results into a conversation, as the model's chat template wants them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from specport.errors import InvalidInput
from specport.text.tools.definitions import Tool
from specport.text.tools.syntax import GENERIC

Message = Mapping[str, Any]
_SHAPE = 'a call is {"id": ..., "type": "function", "function": {"name": ..., "arguments": "{...}"}}'
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
    out["content"] = _text(out.get("content"))
    calls = out.pop("tool_calls", None)
    if calls:
        if not isinstance(calls, Sequence) or isinstance(calls, str):
            raise InvalidInput("tool_calls of a message is no list", _SHAPE)
        out["tool_calls"] = [_call(call) for call in calls]
    return out


def _text(content: Any) -> str:
    """Return the text of a message's content: a string, None, or the parts of OpenAI's API."""
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        if all(isinstance(text, str) for text in content):
            return "".join(content)
    if content is None or isinstance(content, str):
        return content or ""
    raise InvalidInput("the content of a message is no text")


def _call(call: Any) -> dict[str, Any]:
    """Return a call whose arguments are an object: templates write them as JSON."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InvalidInput("a call of a message has no function", _SHAPE)
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        with suppress(ValueError, RecursionError):  # broken text of the model stays: templates may take it
            arguments = json.loads(arguments)
    return {**call, "function": {**function, "arguments": arguments}}


def _written(call: Mapping[str, Any]) -> str:
    body = {name: call["function"][name] for name in ("name", "arguments")}
    return f"{GENERIC.opening}\n{json.dumps(body, ensure_ascii=False)}\n{GENERIC.closing}"
