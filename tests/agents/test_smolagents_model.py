"""The model for smolagents on a tiny model: alone, and in both kinds of agents."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

import jsonschema
import pytest

pytest.importorskip("smolagents")
pytest.importorskip("llguidance")
from smolagents import CodeAgent, LogLevel, Tool, ToolCallingAgent
from smolagents.models import CODEAGENT_RESPONSE_FORMAT, REMOVE_PARAMETER, agglomerate_stream_deltas
from support.processes.own_cache import own_cache  # noqa: F401
from support.tiny import tiny_agents

import specport
from specport.agents import SpecportModel
from specport.agents.code_steps import code_step
from specport.agents.conversation import tool_schema
from specport.errors import InvalidInput
from specport.pipeline import Pipeline

PROMPTS: Any = {
    "system_prompt": "go",
    "planning": {"initial_plan": "", "update_plan_pre_messages": "", "update_plan_post_messages": ""},
    "managed_agent": {"task": "", "report": ""},
    "final_answer": {"pre_messages": "end", "post_messages": "{{task}}"},
}
ASKED: Any = [{"role": "user", "content": [{"type": "text", "text": "abc"}]}]


class Weigh(Tool):
    name = "weigh"
    description = "Weighs"
    inputs = {  # noqa: RUF012
        "fruit": {"type": "string", "description": "which", "enum": ["apple", "pear"]},
        "count": {"type": "integer", "description": "how many", "minimum": 1, "maximum": 9},
        "notes": {
            "type": "array", "description": "words", "items": {"type": "string", "maxLength": 4},
            "maxItems": 2, "nullable": True,
        },
    }  # fmt: skip
    output_type = "string"

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, int]] = []

    def forward(self, fruit: str, count: int, notes: Any = None) -> str:
        self.calls.append((fruit, count))
        return f"{count} {fruit}: {count * 100} g"


def made(pipeline: Pipeline, **options: Any) -> SpecportModel:
    return SpecportModel(pipeline=pipeline, **{"max_tokens": 40, **options})


def test_an_answer_is_that_of_the_pipeline(pipeline: Pipeline) -> None:
    model = made(pipeline, max_tokens=24)
    wanted = pipeline.generate("abc", max_new_tokens=24)
    answer = model.generate(ASKED)
    assert answer.content == wanted.text and answer.role == "assistant" and answer.tool_calls is None
    assert answer.token_usage.output_tokens == len(wanted.token_ids)
    assert answer.token_usage.input_tokens == len(wanted.prompt_token_ids)
    assert json.loads(json.dumps(answer.raw))["finish_reason"] == wanted.finish_reason
    deltas = [*model.generate_stream(ASKED)]
    whole = agglomerate_stream_deltas(deltas)
    assert len(deltas) > 3 and whole.content == wanted.text
    assert whole.token_usage.output_tokens == len(wanted.token_ids)


def test_stop_sequences_end_free_text(pipeline: Pipeline) -> None:
    text = made(pipeline).generate(ASKED).content
    stop = re.findall("[!-~]{2}", text)[-1]
    for answer in (
        made(pipeline).generate(ASKED, stop_sequences=[stop]),
        agglomerate_stream_deltas([*made(pipeline).generate_stream(ASKED, stop_sequences=[stop])]),
    ):
        assert answer.content == text[: text.index(stop)] != ""


def test_drafts_change_no_step_and_are_counted(pipeline: Pipeline) -> None:
    model = made(pipeline)
    with pytest.raises(InvalidInput, match="unknown option: max_length"):
        model.generate(ASKED, max_length=3)
    assert model.last_metrics is None and model.totals.num_calls == 0
    texts = [model.generate(ASKED).content for _ in range(3)]
    assert texts == [texts[0]] * 3
    last = model.last_metrics
    assert last.num_accepted_tokens > last.num_output_tokens / 2  # by suffix, of the texts before
    totals = model.reset_totals()
    assert totals.num_calls == 3 and totals.num_output_tokens == 3 * last.num_output_tokens
    assert model.totals.num_calls == 0
    assert totals.as_dict()["acceptance_rate"] > 0 and totals.tpot_s > 0 and totals.mean_ttft_s > 0


def test_a_dropped_stream_ends_its_text(pipeline: Pipeline) -> None:
    model = made(pipeline)
    stream = model.generate_stream(ASKED)
    next(stream)
    stream.close()
    assert pipeline.engine.num_unfinished == 0 and model.totals.num_calls == 1


def test_schemas_hold_answers(pipeline: Pipeline) -> None:
    model = made(pipeline, temperature=1.2, seed=1, max_tokens=2000)
    form = json.loads(json.dumps(CODEAGENT_RESPONSE_FORMAT))
    schema = form["json_schema"]["schema"]
    for value in schema["properties"].values():
        value["maxLength"] = 8
    # A stop sequence inside of a string would leave no JSON.
    answer = model.generate(ASKED, response_format=form, stop_sequences=["e", "o", "t"])
    jsonschema.validate(json.loads(answer.content), schema)


def test_calls_are_held_to_the_tools(pipeline: Pipeline) -> None:
    schema = tool_schema(Weigh())["function"]["parameters"]
    for seed in range(2):
        model = made(pipeline, temperature=1.2, seed=seed, max_tokens=400)
        answer = model.generate(ASKED, tools_to_call_from=[Weigh()], stop_sequences=["a", "Observation:"])
        (call,) = answer.tool_calls
        assert call.function.name == "weigh" and answer.content is None
        jsonschema.validate(json.loads(call.function.arguments), schema)
        streamed = [*model.generate_stream(ASKED, tools_to_call_from=[Weigh()])]
        assert agglomerate_stream_deltas(streamed).tool_calls[0].function == call.function


def test_an_agent_that_calls_tools(pipeline: Pipeline) -> None:
    tool = Weigh()
    model = made(pipeline, temperature=1.0, max_tokens=300)
    agent = ToolCallingAgent(
        [tool, tiny_agents.Answer()],
        model,
        prompt_templates=PROMPTS,
        max_steps=3,
        verbosity_level=LogLevel.OFF,
        stream_outputs=True,
    )
    agent.run("weigh")
    steps = [step for step in agent.memory.steps if hasattr(step, "tool_calls")]
    assert steps and not [step.error for step in steps if step.error and "max steps" not in str(step.error)]
    assert model.totals.num_calls in (len(steps), len(steps) + 1)
    assert agent.monitor.get_total_token_counts().output_tokens > 0
    if len(steps) > 1:  # a step reads only what is new
        assert model.totals.num_cached_tokens > 0


def test_an_agent_that_writes_code(pipeline: Pipeline) -> None:
    tool = Weigh()
    model = made(pipeline, temperature=1.0, max_tokens=600, grammar=code_step([tool], longest=8))
    agent = CodeAgent([tool], model, prompt_templates=PROMPTS, max_steps=3, verbosity_level=LogLevel.OFF)
    agent.run("weigh")
    lines = [step.code_action for step in agent.memory.steps if getattr(step, "code_action", None)]
    assert lines
    for line in lines:
        (node,) = ast.parse(line).body
        assert isinstance(node, ast.Expr) and node.value.func.id in ("print", "final_answer")
    called = [line for line in lines if "weigh(" in line]
    assert len(called) == len(tool.calls)


def test_it_can_be_written_down(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tiny_agents.write(tmp_path_factory.mktemp("tiny"))
    history = tmp_path_factory.mktemp("history")
    options: dict[str, Any] = {"draft": "suffix", "device": "torch-cpu", "history": history, "max_tokens": 9}
    with SpecportModel(str(folder), **options, grammar=specport.Grammar.regex("[ab]{12}")) as model:
        text = model.generate(ASKED).content
        agent = CodeAgent([], model, verbosity_level=LogLevel.OFF)
        saved = json.loads(json.dumps(model.to_dict()))
        with CodeAgent.from_dict(json.loads(json.dumps(agent.to_dict())), tools=[]).model as again:
            assert again.generate(ASKED).content == text and len(text) == 9
    assert saved["history"] == str(history) and saved["model"] == str(folder) and saved["max_tokens"] == 9
    with pytest.raises(InvalidInput, match="closed"):
        model.generate(ASKED)


def test_mistakes_are_told_before_a_model_is_loaded(pipeline: Pipeline) -> None:
    with pytest.raises(InvalidInput, match="unknown option: temprature"):
        SpecportModel("no such model", temprature=1)
    with pytest.raises(InvalidInput, match="has its model already"):
        SpecportModel(pipeline=pipeline, draft="none")
    with pytest.raises(InvalidInput, match="cannot be written down"):
        made(pipeline).to_dict()
    with pytest.raises(InvalidInput, match="reads text only"):
        made(pipeline).generate([{"role": "user", "content": [{"type": "image", "image": 0}]}])
    assert made(pipeline, stop=REMOVE_PARAMETER).generate(ASKED, stop_sequences=["a"]).content
