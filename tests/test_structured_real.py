"""Grammars and tools on the default model: valid JSON, and the same tokens with and without drafts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

import specport
from specport.errors import InvalidInput
from specport.pipeline import Pipeline

pytestmark = pytest.mark.real_model
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "hobbies": {
            "type": "array",
            "items": {"type": "string", "maxLength": 15},
            "minItems": 2,
            "maxItems": 3,
        },
        "kind": {"enum": ["alpha", "beta"]},
    },
    "required": ["name", "age", "hobbies", "kind"],
    "additionalProperties": False,
}
GRAMMAR = specport.Grammar.json_schema(SCHEMA)
TOOL = {"type": "function", "function": {
    "name": "weather", "description": "Tells the weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"],
                   "additionalProperties": False},
}}  # fmt: skip
PROMPT = "Invent a person, as JSON."


@pytest.fixture(scope="module", params=["none", "ngram", "auto"])
def pipeline(request: pytest.FixtureRequest) -> Iterator[Pipeline]:
    with specport.load(draft=request.param, device="xeon") as loaded:
        yield loaded


_texts: dict[str, list[int]] = {}  # of the first pipeline


def test_valid_json_and_the_same_tokens_with_all_drafts(pipeline: Pipeline) -> None:
    for temperature in (0.0, 0.9):
        result = pipeline.generate(
            PROMPT, grammar=GRAMMAR, temperature=temperature, seed=3, max_new_tokens=150
        )
        assert result.finish_reason == "stop"
        jsonschema.validate(json.loads(result.text), SCHEMA)
        if not temperature:
            assert _texts.setdefault("json", result.token_ids) == result.token_ids
            forced = result.metrics.drafting.by.get("forced")
            assert (forced is None) == (pipeline.draft_name == "none")
            assert forced is None or forced.accepted >= 0.9 * forced.drafted > 0


def test_texts_side_by_side_are_as_alone(pipeline: Pipeline) -> None:
    together = pipeline.generate([PROMPT, "Invent a cat, as JSON."], grammar=GRAMMAR, max_new_tokens=150)
    alone = pipeline.generate(PROMPT, grammar=GRAMMAR, max_new_tokens=150)
    assert together[0].token_ids == alone.token_ids
    for result in together:
        jsonschema.validate(json.loads(result.text), SCHEMA)


def test_cut_json_says_so(pipeline: Pipeline) -> None:
    result = pipeline.generate(PROMPT, grammar=GRAMMAR, max_new_tokens=8)
    assert result.finish_reason == "length" and GRAMMAR.kind == "json_schema"
    with pytest.raises(ValueError, match="line 1"):
        json.loads(result.text)


def test_a_required_call_and_the_answer_to_its_result(pipeline: Pipeline) -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "What is the weather in Rome?"}]
    stream = pipeline.stream(messages, tools=[TOOL], tool_choice="required", parallel_tool_calls=False)
    assert stream.tools is not None
    parser = stream.tools.parser()
    deltas = [delta.as_openai() for chunk in stream for delta in parser.feed(chunk.text)]
    result = stream.result
    assert _texts.setdefault("call", result.token_ids) == result.token_ids
    (call,) = result.tool_calls
    assert call.name == "weather" and set(json.loads(call.arguments)) == {"city"} and result.content == ""
    pieces = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert "".join(piece["function"]["arguments"] for piece in pieces) == call.arguments
    assert pieces[0]["function"]["name"] == "weather" and all(piece["index"] == 0 for piece in pieces)
    messages += [result.message, {"role": "tool", "tool_call_id": call.id, "content": "22 degrees, sunny"}]
    answer = pipeline.generate(messages, tools=[TOOL], tool_choice="none", max_new_tokens=24)
    assert answer.content and not answer.tool_calls


def test_chats_and_plain_prompts_refuse_tools(pipeline: Pipeline) -> None:
    with pytest.raises(InvalidInput, match="a chat has no tools"):
        pipeline.chat(tools=[TOOL])
    with pytest.raises(InvalidInput, match="chat template"):
        pipeline.generate("Hello", raw=True, tools=[TOOL])
