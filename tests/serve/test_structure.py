"""Structured answers, tools and log-probabilities through OpenAI's own client, as the library gives them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest
from support.processes.own_cache import own_cache  # noqa: F401
from support.processes.served import NAME, listening, load_tiny

from specport.pipeline import Pipeline

pytest.importorskip("llguidance")
MESSAGES: Any = [{"role": "user", "content": "hello world"}]
SCHEMA = {
    "type": "object", "properties": {"size": {"enum": [1, 2, 3]}, "kind": {"enum": ["car", "bus"]}},
    "required": ["size", "kind"], "additionalProperties": False,
}  # fmt: skip
TOOLS: Any = [
    {"type": "function", "function": {"name": name, "parameters": SCHEMA, "strict": True}}
    for name in ("look_up", "order")
]
LIKED = {"seed": 5, "temperature": 1.2, "max_tokens": 60}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    with load_tiny(tmp_path_factory.mktemp("tiny")) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def client(pipeline: Pipeline) -> Iterator[openai.OpenAI]:
    with listening(pipeline) as (url, _), openai.OpenAI(base_url=f"{url}/v1", api_key="none") as made:
        yield made


def chat(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(**{"model": NAME, "messages": MESSAGES, **LIKED, **fields})


def test_an_answer_in_json(client: openai.OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
    choice = chat(client, response_format=form).choices[0]
    assert choice.finish_reason == "stop"
    jsonschema.validate(json.loads(choice.message.content), SCHEMA)
    plain = chat(client, response_format=form, extra_body={"speculative": {"draft": "none"}})
    assert plain.choices[0].message.content == choice.message.content
    pieces = [c.choices[0].delta.content or "" for c in chat(client, response_format=form, stream=True)]
    assert "".join(pieces) == choice.message.content
    cut = chat(client, response_format={"type": "json_object"}, max_tokens=1).choices[0]
    assert (cut.finish_reason, cut.message.content) == ("length", "{")


def test_other_grammars(client: openai.OpenAI) -> None:
    for asked, pattern in (
        ({"regex": "[a-c]{3}( d){2}"}, "[a-c]{3}( d){2}"),
        ({"grammar": 'start: "x" ("y" | "z")'}, "x[yz]"),
        ({"json": SCHEMA}, r'\{"size": [123], "kind": "(car|bus)"\}'),
        ({"choice": ['say "no"\n', "a|b", "\\n/*", "ä"]}, r'say "no"\n|a\|b|\\n/\*|ä'),
    ):
        reply = chat(client, extra_body={"structured_outputs": asked})
        assert re.fullmatch(pattern, reply.choices[0].message.content)
        reply = client.completions.create(
            model=NAME, prompt="hello", **LIKED, extra_body={"structured_outputs": asked}
        )
        assert re.fullmatch(pattern, reply.choices[0].text)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "order"}}])
def test_a_call_of_a_tool(client: openai.OpenAI, choice: Any) -> None:
    asked = {"tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": False, "max_tokens": 120}
    whole = chat(client, **asked).choices[0]
    assert whole.finish_reason == "tool_calls" and whole.message.content is None
    (call,) = whole.message.tool_calls
    assert call.type == "function" and call.function.name in ("look_up", "order")
    assert choice == "required" or call.function.name == "order"
    jsonschema.validate(json.loads(call.function.arguments), SCHEMA)
    name, arguments, ids, reasons = "", "", set(), []
    for chunk in chat(client, **asked, stream=True):
        (one,) = chunk.choices
        reasons.append(one.finish_reason)
        for piece in one.delta.tool_calls or ():
            assert piece.index == 0
            ids.add(piece.id)
            name += piece.function.name or ""
            arguments += piece.function.arguments or ""
    assert (name, arguments) == (call.function.name, call.function.arguments)
    assert len(ids - {None}) == 1 and reasons[-1] == "tool_calls" and not any(reasons[:-1])
    # The conversation goes on with the call and its result.
    again = [*MESSAGES, whole.message.model_dump(exclude_none=True),
             {"role": "tool", "tool_call_id": call.id, "content": "12"}]  # fmt: skip
    assert chat(client, messages=again, tools=TOOLS, tool_choice="none").choices[0].message.tool_calls is None


def test_log_probabilities_of_a_chat(client: openai.OpenAI, pipeline: Pipeline) -> None:
    asked = {"logprobs": True, "top_logprobs": 2, "max_tokens": 12}
    choice = chat(client, **asked).choices[0]
    wanted = pipeline.generate(MESSAGES, logprobs=2, max_new_tokens=12, seed=5, temperature=1.2)
    entries = choice.logprobs.content
    assert [entry.logprob for entry in entries] == [entry.logprob for entry in wanted.logprobs]
    assert [[t.logprob for t in e.top_logprobs] for e in entries] == [
        [logprob for _, logprob in entry.top] for entry in wanted.logprobs
    ]
    text = b"".join(bytes(entry.bytes) for entry in entries).decode(errors="replace")
    assert text == choice.message.content
    streamed = [c.choices[0].logprobs for c in chat(client, **asked, stream=True)]
    assert [e for each in streamed if each for e in each.content] == entries
    assert chat(client, max_tokens=3).choices[0].logprobs is None


def test_log_probabilities_of_a_completion(client: openai.OpenAI) -> None:
    asked: Any = {"model": NAME, "prompt": ["hello", "12"], "max_tokens": 8, "seed": 2, "logprobs": 2}
    first, second = client.completions.create(**asked).choices
    for choice in (first, second):
        told = choice.logprobs
        assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == 8
        whole = [(a, t) for a, t in zip(told.text_offset, told.tokens, strict=True) if "bytes:" not in t]
        assert whole and all(choice.text[start:].startswith(token) for start, token in whole)
        for token, logprob, top in zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True):
            assert top[token] == logprob and 2 <= len(top) <= 3
    offsets: dict[int, list[int]] = {0: [], 1: []}
    for chunk in client.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            offsets[choice.index] += choice.logprobs.text_offset if choice.logprobs else []
    assert offsets == {0: first.logprobs.text_offset, 1: second.logprobs.text_offset}


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"response_format": {"type": "xml"}}, "response_format", "'xml'"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "no json_schema.schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "objekt"}}}},
            "response_format", "Invalid type: objekt",
        ),
        ({"structured_outputs": {"regex": "a("}}, "structured_outputs", "unclosed group"),
        ({"structured_outputs": {}}, "structured_outputs", "one grammar only"),
        # Found only while it is followed.
        ({"structured_outputs": {"regex": "(a{1000}){1000}"}}, None, "cannot be followed any further"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs", "not empty"),
        ({"response_format": {"type": ["text"]}}, "response_format", "['text']"),
        ({"response_format": {"type": "text", "x": 1}}, "response_format", "'x'"),
        ({"response_format": {"type": "json_object", "schema": 3}}, "response_format", "JSON object"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "strikt": True}}},
            "response_format", "'strikt'",
        ),
        (
            {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
            "structured_outputs", "one grammar only",
        ),
        ({"tools": [{"type": "function"}]}, "tools", "a tool is named None"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "strict": True,
                                                         "parameters": {"not": {}}}}]},
            "tools", "tool f is strict, but",
        ),
        ({"tools": TOOLS, "tool_choice": "required", "response_format": {"type": "json_object"}}, "tools",
         "cannot be combined"),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"tool_choice": "auto"}, "tool_choice", "needs tools"),
        ({"tool_choice": "auto", "tools": []}, "tool_choice", "needs tools"),
        ({"tools": TOOLS, "tool_choice": "perhaps"}, "tool_choice", "perhaps"),
        ({"tools": TOOLS, "tool_choice": {"function": {"name": "x"}}}, "tool_choice", "'x'"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_for(
    client: openai.OpenAI, fields: Any, param: str | None, message: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, extra_body=fields)
    assert caught.value.param == param and message in caught.value.message
