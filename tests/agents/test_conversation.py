"""An agent's memory as messages, and its tools as schemas that a grammar holds."""

from __future__ import annotations

from typing import Any, Literal

import pytest

pytest.importorskip("smolagents")
from smolagents import FinalAnswerTool, Tool, tool
from smolagents.memory import ActionStep, ToolCall
from smolagents.models import ChatMessage, MessageRole
from smolagents.monitoring import Timing

from specport.agents.conversation import messages_of, tool_schema
from specport.errors import InvalidInput
from specport.text.grammar.grammar import Grammar


def message(role: MessageRole, *texts: str) -> ChatMessage:
    return ChatMessage(role, [{"type": "text", "text": text} for text in texts])


def step(output: str | None, *calls: tuple[str, Any], seen: str | None = None) -> list[ChatMessage]:
    """The messages of a step, as smolagents' own memory tells them."""
    made = [ToolCall(name, arguments, f"id{i}") for i, (name, arguments) in enumerate(calls)]
    memory = ActionStep(1, Timing(0.0), tool_calls=made or None, model_output=output, observations=seen)
    return memory.to_messages()


START = [message(MessageRole.SYSTEM, "be brief"), message(MessageRole.USER, "New task:", "what is 1 + 1")]
TOLD = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "New task:\nwhat is 1 + 1"}]


def test_calls_and_results_are_told_as_such() -> None:
    memory = [*START, *step(None, ("add", {"a": 1, "b": "it's"}), seen="2")]
    *told, call, result = messages_of(memory, tools=True)
    assert told == TOLD and call["role"] == "assistant" and call["content"] == ""
    (function,) = call["tool_calls"]
    assert function == {
        "id": "id0", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": "it\'s"}'}
    }  # fmt: skip
    assert result == {"role": "tool", "tool_call_id": "id0", "content": "2"}


def test_text_beside_a_call_stays_with_it_and_each_call_has_a_result() -> None:
    memory = [*START, *step("I add.", ("add", {"a": 1}), ("add", {"a": 2}), seen="1\n2")]
    call, *results = messages_of(memory, tools=True)[2:]
    assert call["content"] == "I add." and [c["id"] for c in call["tool_calls"]] == ["id0", "id1"]
    assert [(r["tool_call_id"], r["content"]) for r in results] == [("id0", "1\n2"), ("id1", "see above")]


def test_without_tools_all_is_text_and_roles_alternate() -> None:
    memory = [*START, *step("I add.", ("add", {"a": 1}), seen="1"), message(MessageRole.USER, "go on")]
    told = messages_of(memory, tools=False)
    assert [m["role"] for m in told] == ["system", "user", "assistant", "user"]
    assert told[2]["content"].startswith("I add.\nCalling tools:\n[{'id': 'id0'")
    assert told[3]["content"] == "Observation:\n1\ngo on"


def test_the_code_of_a_code_agent_is_told_once() -> None:
    text = "Thought: x\n<code>\nprint(2)\n</code>"
    memory = [*START, *step(text, ("python_interpreter", "print(2)"), seen="2")]
    told = messages_of(memory, tools=False)
    assert told[2:] == [
        {"role": "assistant", "content": text},
        {"role": "user", "content": "Observation:\n2"},
    ]


@pytest.mark.parametrize(
    "text", ["Calling tools:\n[{'id': 1}]", "Calling tools:\n__import__('os')", "nothing"]
)
def test_calls_that_cannot_be_read_stay_text(text: str) -> None:
    told = messages_of([*START, message(MessageRole.TOOL_CALL, text)], tools=True)
    assert told[-1] == {"role": "assistant", "content": text}


def test_an_error_after_no_call_is_the_users() -> None:
    told = messages_of([*START, message(MessageRole.TOOL_RESPONSE, "Error:\nno call")], tools=True)
    assert told[-1] == {"role": "user", "content": TOLD[1]["content"] + "\nError:\nno call"}


def test_plain_messages_and_openais() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    plain: list[Any] = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "done", "tool_call_id": "c"},
    ]
    assert messages_of(plain, tools=True) == [
        plain[0], {"role": "assistant", "content": "", "tool_calls": [call]}, plain[2]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "said"),
    [([{"type": "image", "image": object()}], "'image': this model reads text only"), (["x"], "'str'")],
)
def test_images_are_refused(content: Any, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        messages_of([ChatMessage(MessageRole.USER, content)], tools=False)


def test_a_role_that_does_not_exist() -> None:
    with pytest.raises(InvalidInput, match="role 'poet'"):
        messages_of([{"role": "poet", "content": "x"}], tools=False)


class Many(Tool):
    name = "many"
    description = "Has inputs of all kinds"
    inputs = {  # noqa: RUF012
        "image": {"type": "image", "description": "a picture"},
        "word": {"type": "string", "description": "a word", "nullable": True, "enum": ["a", "b"]},
        "numbers": {"type": "array", "description": "some", "items": {"type": "integer"}, "maxItems": 2},
    }
    output_type = "string"

    def forward(self, image: Any, numbers: Any, word: Any = None) -> str:
        return ""


def test_schemas_are_plain_json_schema() -> None:
    parameters = tool_schema(Many())["function"]["parameters"]
    assert parameters["additionalProperties"] is False and parameters["required"] == ["image", "numbers"]
    assert parameters["properties"] == {
        "image": {"type": "string", "description": "a picture"},
        "word": {"type": ["string", "null"], "description": "a word", "enum": ["a", "b", None]},
        "numbers": {"type": "array", "description": "some", "items": {"type": "integer"}, "maxItems": 2},
    }
    answer = tool_schema(FinalAnswerTool())["function"]["parameters"]["properties"]["answer"]
    assert answer["type"] == "string"
    assert Many.inputs["image"]["type"] == "image"  # the tool's own are left alone


def test_schemas_in_schemas_are_plain_too() -> None:
    @tool
    def sort(
        rows: list[list[Any]], table: dict[str, int | None], pairs: list[Literal[1, "a"] | list[int] | None]
    ) -> str:
        """Sorts.

        Args:
            rows: what
            table: how
            pairs: more
        """
        return ""

    schema = tool_schema(sort)["function"]["parameters"]
    found = {name: {**value, "description": ""} for name, value in schema["properties"].items()}
    assert found == {
        "rows": {"type": "array", "items": {"type": "array", "items": {"type": "string"}}, "description": ""},
        "table": {
            "type": "object", "additionalProperties": {"type": ["integer", "null"]}, "description": "",
        },
        "pairs": {
            "type": "array", "description": "",
            "items": {
                "anyOf": [
                    {"type": ["integer", "string"], "enum": [1, "a"]},
                    {"type": "array", "items": {"type": "integer"}}, {"type": "null"},
                ]
            },
        },
    }  # fmt: skip
    Grammar.json_schema(schema)
