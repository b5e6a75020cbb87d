"""The plugin for `llm` on a tiny model: prompts, schemas, tools, conversations, and the command line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

import jsonschema
import pytest

pytest.importorskip("llm")
pytest.importorskip("llguidance")
import llm
from click.testing import CliRunner
from support.processes.own_cache import own_cache  # noqa: F401
from support.tiny import tiny_agents

from specport.agents.llm_plugin import SpecportLlm, messages_of
from specport.core.metrics import Metrics
from specport.errors import InvalidInput
from specport.stream import Chunk, Result
from specport.text.tools.definitions import Tool
from specport.text.tools.session import ToolSession
from specport.text.tools.syntax import HERMES

SCHEMA = {
    "type": "object", "properties": {"size": {"enum": [1, 2, 3]}}, "required": ["size"],
    "additionalProperties": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_agents.write(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def options(folder: Path) -> dict[str, Any]:
    return {
        "model": str(folder),
        "device": "torch-cpu",
        "draft": "suffix",
        "policy": "fixed",
        "num_draft_tokens": 4,
        "max_tokens": 30,
    }


@pytest.fixture(scope="module")
def model(options: dict[str, Any]) -> Iterator[SpecportLlm]:
    made = SpecportLlm()
    yield made
    made.close()


def test_answers_are_those_of_the_library(model: SpecportLlm, options: dict[str, Any]) -> None:
    streamed = model.prompt("abc", **options)
    pieces = [*streamed]
    whole = model.prompt("abc", stream=False, **options)
    assert len([*whole]) == 1 and whole.text() == "".join(pieces) and len(pieces) > 1
    assert model._loaded is not None
    pipeline = model._loaded[1]
    wanted = pipeline.generate("abc", max_new_tokens=30)
    brief = pipeline.generate("abc", system="be brief", max_new_tokens=30)
    assert model.prompt("abc", system="be brief", **options).text() == brief.text
    assert whole.text() == wanted.text
    usage = whole.usage()
    assert (usage.input, usage.output) == (len(wanted.prompt_token_ids), len(wanted.token_ids))
    assert usage.details["drafted_tokens"] >= usage.details["accepted_tokens"] > 0
    assert usage.details["ttft_ms"] > 0 and json.loads(json.dumps(whole.response_json))["finish_reason"]
    assert whole.resolved_model == "tiny"


def test_a_conversation_goes_on_where_it_was(model: SpecportLlm, options: dict[str, Any]) -> None:
    conversation = model.conversation()
    first = conversation.prompt("hello world " * 20, **options)
    first.text()
    loaded = model._loaded
    second = conversation.prompt("12", **options)
    assert second.text() and model._loaded is loaded
    assert second.usage().input > first.usage().input + 20  # the first turn is in the prompt
    assert second.usage().details["cached_tokens"] > 0 or loaded[1].engine.model.prefix_blocks is None


def test_schemas(model: SpecportLlm, options: dict[str, Any]) -> None:
    answer = model.prompt("hello", schema=SCHEMA, **options)
    jsonschema.validate(json.loads(answer.text()), SCHEMA)


def test_tools_are_called_and_their_results_told(model: SpecportLlm, options: dict[str, Any]) -> None:
    seen = []

    def weigh(fruit: Literal["apple", "pear"]) -> str:
        """Weighs fruit"""
        seen.append(fruit)
        return f"{fruit}: 100 g"

    chain = model.conversation().chain(
        "hello", tools=[weigh], chain_limit=3,
        options={**options, "max_tokens": 200, "tool_choice": "required", "temperature": 1.0, "seed": 1},
    )  # fmt: skip
    asked, told = chain.responses()
    calls = asked.tool_calls()
    assert seen == [call.arguments["fruit"] for call in calls] != [] and {c.name for c in calls} == {"weigh"}
    _, answer, *results = messages_of(told.prompt.messages)
    ids = [call.tool_call_id for call in calls]
    assert [call["id"] for call in answer["tool_calls"]] == ids == [each["tool_call_id"] for each in results]
    assert [(each["role"], each["content"]) for each in results] == [("tool", f"{f}: 100 g") for f in seen]


def test_a_call_that_breaks_off_is_told_once_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    written = 'Now. <tool_call>\n{"name": "f", "arguments": {"x": 1 2}} and <tool_call>\n' + (
        '{"name": "f", "arguments": {"x": 3}}\n</tool_call>'
    )
    session = ToolSession([], None, HERMES, (Tool("f"),))
    content, calls = session.parse(written)

    class Answer(list[Chunk]):
        tools = session
        result = Result(written, [], "stop", Metrics(), [], [], content, calls)

        def close(self) -> None:
            pass

    class Loaded:
        model_name = "scripted"

        def stream(self, messages: Any, **options: Any) -> Answer:
            return Answer(Chunk(written[i : i + 3], ()) for i in range(0, len(written), 3))

    model = SpecportLlm()
    monkeypatch.setattr(model, "_pipeline", lambda wanted: Loaded())
    answer = model.prompt("hello")
    assert answer.text() == content and content.startswith("Now. <tool_call>") and content.count("1 2") == 1
    assert [call.arguments for call in answer.tool_calls()] == [{"x": 3}]


def test_a_tool_without_arguments_gets_none(model: SpecportLlm, options: dict[str, Any]) -> None:
    def now() -> str:
        """Tells the time"""
        return "noon"

    given = {**options, "max_tokens": 60, "tool_choice": "required", "temperature": 1.0, "seed": 1}
    calls = model.prompt("hello", tools=[now], **given).tool_calls()
    assert calls and all(call.arguments == {} for call in calls)


def test_what_cannot_be_done_is_said(model: SpecportLlm, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="schema and tools at once"):
        model.prompt("hello", schema=SCHEMA, tools=[len], **options).text()
    with pytest.raises(InvalidInput, match="temperature is -1"):
        model.prompt("hello", temperature=-1, **options).text()
    with pytest.raises(ValueError, match="attachments"):
        model.prompt("hello", attachments=[llm.Attachment(content=b"x", type="image/png")], **options).text()


def test_the_command_line(options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`llm -c` in another process continues with what the first one has read, where a folder keeps it."""
    from llm.cli import cli

    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path / "llm"))
    given = [part for name, value in options.items() for part in ("-o", name, str(value))]
    runner = CliRunner()
    first = runner.invoke(cli, ["-m", "specport", "abc", "-u", *given])
    assert first.exit_code == 0, first.output
    assert re.search(r"\d+ output", first.output) and '"accepted_tokens"' in first.output
    again = runner.invoke(cli, ["-c", "12", *given])
    assert again.exit_code == 0 and again.stdout.strip()
    wrong = runner.invoke(cli, ["-m", "specport", "x", "-o", "device", "abacus"])
    assert wrong.exit_code == 1 and wrong.output.startswith("Error: ") and "abacus" in wrong.output
    listed = runner.invoke(cli, ["models", "--options", "-m", "specport"])
    assert "draft" in listed.output and "prefix_cache" in listed.output


def test_it_is_registered_and_loads_fast() -> None:
    assert "specport.agents.llm_plugin" in {point.value for point in entry_points(group="llm")}
    code = (
        "import llm, sys; before = {*sys.modules}; llm.get_model('specport');"
        "new = {m.split('.')[0] for m in {*sys.modules} - before};"
        "assert not new & {'numpy', 'torch', 'openvino', 'transformers', 'smolagents', 'tokenizers'}, new;"
        "print(len([m for m in sys.modules if m.startswith('specport')]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 12
