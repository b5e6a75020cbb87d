"""An agent's memory as a conversation in OpenAI's format, and its tools as JSON schemas."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from typing import Any

from smolagents.models import ChatMessage, MessageRole, get_tool_json_schema
from smolagents.tools import Tool

from specport.errors import InvalidInput

Json = dict[str, Any]
_CALLING = "Calling tools:\n"  # how smolagents' memory begins a message of calls
_OBSERVATION = "Observation:\n"
_JSON_TYPES = {"string", "boolean", "integer", "number", "array", "object", "null"}


def messages_of(memory: Sequence[ChatMessage | Mapping[str, Any]], *, tools: bool) -> list[Json]:
    """Return the messages of an agent's memory. Neighbours of the same role become one message.

    tools: whether calls and their results are told in the model's own syntax. smolagents keeps them as text;
           as text they stay where no tools are given, or where they cannot be read. A CodeAgent's code, which
           it tells twice, is told once.

    Raises InvalidInput where a message has an image or another part that is no text.
    """
    out: list[Json] = []
    waiting: list[str] = []  # ids of calls whose results have not come
    for message in memory:
        role, content, calls = _parts(message)
        if role == MessageRole.TOOL_CALL:
            calls = calls or (_read_calls(content) if tools else [])
            role = MessageRole.ASSISTANT
            content = "" if calls else content
        if not tools and out and out[-1]["role"] == "assistant" and _is_code(content):
            continue
        if tools and calls:
            waiting = [call["id"] for call in calls]
        elif role == MessageRole.TOOL_RESPONSE:
            if waiting:  # smolagents tells the results of all calls of a step at once
                text = content.removeprefix(_OBSERVATION)
                out += [_result(id_, text if i == 0 else "see above") for i, id_ in enumerate(waiting)]
                waiting = []
                continue
            role = MessageRole.USER
        _append(out, {"role": str(MessageRole(role).value), "content": content}, calls if tools else [])
    return out


def tool_schema(tool: Tool) -> Json:
    """Return a tool as OpenAI's API takes it, with arguments in plain JSON Schema, which a grammar holds.

    smolagents has types and a mark for None of its own: "any", "image", "audio", "nullable".
    """
    found: Json = get_tool_json_schema(tool)
    parameters = found["function"]["parameters"]
    parameters["properties"] = {name: _value(value) for name, value in parameters["properties"].items()}
    parameters["additionalProperties"] = False
    return found


def _value(value: Mapping[str, Any]) -> Json:
    """Return a schema, and those in it, in plain JSON Schema."""
    out = dict(value)
    for name in ("items", "additionalProperties"):
        if isinstance(out.get(name), Mapping):
            out[name] = _value(out[name])
    for name in ("anyOf", "prefixItems"):
        if isinstance(out.get(name), list):
            out[name] = [_value(each) for each in out[name]]
    if isinstance(out.get("properties"), Mapping):
        out["properties"] = {name: _value(each) for name, each in out["properties"].items()}
    nullable = out.pop("nullable", False)
    if "type" not in out:
        if nullable and "anyOf" in out:
            out["anyOf"].append({"type": "null"})
        return out
    given = out["type"]
    types = [
        each if each in _JSON_TYPES else "string" for each in ([given] if isinstance(given, str) else given)
    ]
    if nullable and "null" not in types:
        types.append("null")
        if "enum" in out:
            out["enum"] = [*out["enum"], None]
    types = list(dict.fromkeys(types))
    return {**out, "type": types[0] if len(types) == 1 else types}


def _parts(message: ChatMessage | Mapping[str, Any]) -> tuple[str, str, list[Json]]:
    """Return a message's role, text and calls."""
    if isinstance(message, Mapping):
        role, content, calls = message.get("role"), message.get("content"), message.get("tool_calls")
        found = [dict(call) for call in calls or ()]
    else:
        role, content = message.role, message.content
        found = [
            _call(call.id, call.function.name, call.function.arguments) for call in message.tool_calls or ()
        ]
    role = {"tool": MessageRole.TOOL_RESPONSE.value, "developer": "system"}.get(str(role), role)
    if role not in MessageRole.roles():
        raise InvalidInput(f"a message has the role {role!r}", f"roles are {', '.join(MessageRole.roles())}")
    return MessageRole(role).value, _text(content), found


def _text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind != "text":
            raise InvalidInput(
                f"a message has a part of type {kind!r}: this model reads text only",
                "leave images out, or choose a tool that describes them in words",
            )
        texts.append(str(part["text"]))
    return "\n".join(texts)


def _read_calls(text: str) -> list[Json]:
    """Return the calls that smolagents' memory tells as text; [] where they cannot be read."""
    if not text.startswith(_CALLING):
        return []
    try:
        listed = ast.literal_eval(text.removeprefix(_CALLING).strip())
        return [_call(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in listed]
    except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError):
        return []


def _is_code(text: str) -> bool:
    """Return whether a text tells of the call that a CodeAgent makes of the code in the message before it."""
    return [call["function"]["name"] for call in _read_calls(text)] == ["python_interpreter"]


def _call(id_: str, name: str, arguments: Any) -> Json:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False, default=str)
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": text}}


def _result(id_: str, text: str) -> Json:
    return {"role": "tool", "tool_call_id": id_, "content": text}


def _append(out: list[Json], message: Json, calls: Sequence[Json]) -> None:
    """Append a message; join it to the last one where both have the same role."""
    last = out[-1] if out else None
    if last is None or last["role"] != message["role"] or last.get("tool_calls"):
        out.append({**message, "tool_calls": list(calls)} if calls else message)
        return
    last["content"] = "\n".join(filter(None, [last["content"], message["content"]]))
    if calls:
        last["tool_calls"] = list(calls)
