"""Other people's clients over the server: smolagents, LangChain, LiteLLM. Each gets the library's answers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llguidance")
pytest.importorskip("smolagents")
from smolagents import CodeAgent, LogLevel, OpenAIServerModel, ToolCallingAgent
from smolagents.models import agglomerate_stream_deltas
from support.processes.own_cache import own_cache  # noqa: F401
from support.processes.served import NAME, listening
from support.tiny import tiny_agents

import specport
from specport.agents.code_steps import code_step
from specport.models.fetch import download
from specport.pipeline import Pipeline

SCHEMA: dict[str, Any] = {
    "title": "Weight", "description": "A weight", "type": "object",
    "properties": {"size": {"type": "integer", "minimum": 1, "maximum": 9}}, "required": ["size"],
    "additionalProperties": False,
}  # fmt: skip
TOOL = {"type": "function", "function": {"name": "weigh", "description": "Weighs", "parameters": SCHEMA}}
ASK = "abc"  # whose answer is long


@pytest.fixture(scope="module")
def wanted(pipeline: Pipeline) -> specport.Result:
    return pipeline.generate(ASK, max_new_tokens=24, logprobs=2)


@pytest.fixture(scope="module")
def url(pipeline: Pipeline) -> Iterator[str]:
    with listening(pipeline) as (address, _):
        yield f"{address}/v1"


def test_smolagents(url: str, wanted: specport.Result) -> None:
    model = OpenAIServerModel(NAME, api_base=url, api_key="none", temperature=0, max_tokens=24)
    asked: Any = [{"role": "user", "content": [{"type": "text", "text": ASK}]}]
    stop = re.findall("[!-~]{2}", wanted.text)[-1]
    answer = model.generate(asked, stop_sequences=[stop])
    assert answer.content == wanted.text[: wanted.text.index(stop)] != ""
    whole = agglomerate_stream_deltas([*model.generate_stream(asked)])
    assert whole.content == wanted.text and whole.token_usage.output_tokens == 24
    model.kwargs |= {"temperature": 1.0, "max_tokens": 300, "parallel_tool_calls": False}
    agent = ToolCallingAgent(
        [tiny_agents.Answer()], model, max_steps=2, verbosity_level=LogLevel.OFF, stream_outputs=True
    )
    agent.prompt_templates["system_prompt"] = "go"
    assert isinstance(agent.run("answer"), str)
    assert agent.memory.steps[-1].tool_calls[0].name == "final_answer"


def test_a_code_agent_over_the_server(url: str) -> None:
    """Its steps are held to the grammar of the agents in process, which the server takes in vLLM's words."""
    body = {"structured_outputs": {"grammar": code_step([], longest=8).source}}
    model = OpenAIServerModel(
        NAME, api_base=url, api_key="none", temperature=1.0, max_tokens=400, extra_body=body
    )
    agent = CodeAgent([], model, max_steps=2, verbosity_level=LogLevel.OFF)
    agent.prompt_templates["system_prompt"] = "go"
    agent.run("answer")
    lines = [step.code_action for step in agent.memory.steps if getattr(step, "code_action", None)]
    assert lines and all(line.startswith(("print(", "final_answer(")) for line in lines)


@pytest.mark.parametrize("package", ["smolagents", "langchain_openai"])
def test_the_snippets_of_the_docs(url: str, package: str) -> None:
    pytest.importorskip(package, reason="pip install 'specport[clients]'")
    text = (Path(__file__).parents[2] / "docs" / "agents.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    (code,) = (block for block in blocks if f"from {package} " in block and "127.0.0.1:8000" in block)
    assert f'"{download.NAME}"' in code  # the name of the default model for clients
    found: dict[str, Any] = {}
    exec(code.replace("http://127.0.0.1:8000/v1", url).replace(download.NAME, NAME), found)
    if package == "smolagents":
        assert found["model"].generate([{"role": "user", "content": ASK}], max_tokens=4).content
    else:
        assert found["llm"].invoke(ASK, max_tokens=4).content


def test_langchain(url: str, wanted: specport.Result) -> None:
    openai = pytest.importorskip("langchain_openai", reason="pip install 'specport[clients]'")
    client = openai.ChatOpenAI(model=NAME, base_url=url, api_key="none", temperature=0, max_tokens=24)
    answer = client.bind(logprobs=True, top_logprobs=2).invoke(ASK)
    assert answer.content == wanted.text and answer.usage_metadata["output_tokens"] == 24
    told = [each["logprob"] for each in answer.response_metadata["logprobs"]["content"]]
    assert told == pytest.approx([each.logprob for each in wanted.logprobs], abs=1e-5)
    chunks = [*client.stream(ASK, stream_usage=True)]
    assert "".join(chunk.content for chunk in chunks) == wanted.text
    assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) == 24
    (call,) = (
        _more(client)
        .bind_tools([TOOL], tool_choice="weigh", parallel_tool_calls=False)
        .invoke(ASK)
        .tool_calls
    )
    assert call["name"] == "weigh" and 1 <= call["args"]["size"] <= 9
    found = _more(client).with_structured_output(SCHEMA, method="json_schema").invoke(ASK)
    assert [*found] == ["size"] and 1 <= found["size"] <= 9


def _more(client: Any) -> Any:
    return client.model_copy(update={"max_tokens": 200})


def test_litellm(url: str, wanted: specport.Result, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # its prices come from the network otherwise
    litellm = pytest.importorskip("litellm", reason="pip install 'specport[clients]'")

    def ask(**fields: Any) -> Any:
        return litellm.completion(
            model=f"openai/{NAME}", api_base=url, api_key="none", messages=[{"role": "user", "content": ASK}],
            **{"temperature": 0, "max_tokens": 24, **fields},
        )  # fmt: skip

    answer = ask(logprobs=True, top_logprobs=2)
    assert answer.choices[0].message.content == wanted.text and answer.usage.completion_tokens == 24
    assert len(answer.choices[0].logprobs.content) == len(wanted.logprobs)
    pieces = [chunk.choices[0].delta.content or "" for chunk in ask(stream=True)]
    assert "".join(pieces) == wanted.text
    (call,) = (
        ask(tools=[TOOL], tool_choice="required", parallel_tool_calls=False, max_tokens=200)
        .choices[0]
        .message.tool_calls
    )
    assert call.function.name == "weigh" and 1 <= json.loads(call.function.arguments)["size"] <= 9
    form = {"type": "json_schema", "json_schema": {"name": "weight", "schema": SCHEMA}}
    found = json.loads(ask(response_format=form, max_tokens=200).choices[0].message.content)
    assert [*found] == ["size"] and 1 <= found["size"] <= 9
