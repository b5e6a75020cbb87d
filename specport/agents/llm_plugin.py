"""The plugin for `llm` (entry point "llm"): `llm -m specport "Hello"`.

`llm` imports this module at every start: it imports nothing heavy, and loads a model at the first prompt.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import llm
from llm.parts import Message, Part, ReasoningPart, StreamEvent, TextPart, ToolCallPart, ToolResultPart
from pydantic import Field

from specport.agents.defaults import MAX_TOKENS
from specport.errors import InvalidInput
from specport.text.tools.definitions import NONE

if TYPE_CHECKING:
    from specport.pipeline import Pipeline
    from specport.stream import Result

# Options that choose what is loaded. The others choose how to generate.
_LOADING = (
    "model", "draft", "device", "draft_device", "precision", "draft_precision", "policy", "num_draft_tokens",
    "history", "prefix_cache", "fast",
)  # fmt: skip


@llm.hookimpl  # type: ignore[untyped-decorator]
def register_models(register: Callable[..., None]) -> None:
    register(SpecportLlm())


class SpecportLlm(llm.Model):  # type: ignore[misc]
    """Answer prompts of `llm` in this process.

    The model stays loaded while its options stay the same, as in `llm chat`, and keeps what it has read of a
    conversation.
    """

    model_id = "specport"
    can_stream = True
    supports_schema = True
    supports_tools = True

    class Options(llm.Options):  # type: ignore[misc]
        model: str | None = Field(
            None, description="Hub id, folder or .gguf file; default SmolLM2-135M-Instruct"
        )
        draft: str | None = Field(
            None, description="How to draft, such as suffix, MODEL, or none; default auto"
        )
        device: str | None = Field(None, description="Device, such as xeon or core-ultra-gpu; default auto")
        draft_device: str | None = Field(None, description="Device of the draft model")
        precision: str | None = Field(None, description="Weights of the model, such as int4")
        draft_precision: str | None = Field(None, description="Weights of the draft model")
        policy: str | None = Field(None, description="planned, fixed, heuristic, confidence or classifier")
        num_draft_tokens: int | None = Field(None, description="Constant, start or maximum of the policy")
        history: str | None = Field(None, description="Folder that keeps written texts, to draft from later")
        prefix_cache: str | None = Field(
            None, description="Folder that keeps what was read of prompts, so that llm -c continues at once"
        )
        fast: bool | None = Field(None, description="Give up exactness for faster attention")
        max_tokens: int | None = Field(None, description=f"Most tokens of the answer; default {MAX_TOKENS}")
        temperature: float | None = Field(None, description="0, the default, takes the likeliest token")
        top_p: float | None = Field(None, description="Sample among the likeliest tokens of this probability")
        top_k: int | None = Field(None, description="Sample among so many likeliest tokens")
        min_p: float | None = Field(None, description="Sample among tokens of this share of the likeliest")
        seed: int | None = Field(None, description="The same seed gives the same text again")
        tool_choice: str | None = Field(
            None,
            description="required: a prompt is answered with calls, their results in words; default auto",
        )
        stop: str | None = Field(None, description="Text that ends the answer")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loaded: tuple[dict[str, Any], Pipeline] | None = None

    def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.Response,
        conversation: llm.Conversation | None,
    ) -> Iterator[StreamEvent]:
        """Yield the answer: as it is accepted, or at once. Its calls come last."""
        given = prompt.options.model_dump(exclude_none=True)
        messages = messages_of(prompt.messages)
        options = {name: value for name, value in given.items() if name not in _LOADING}
        options["max_new_tokens"] = options.pop("max_tokens", MAX_TOKENS)
        choice = options.pop("tool_choice", None)
        if choice is not None and prompt.tools:
            # A small model that may would call again, without end: the result of a call is answered in words.
            options["tool_choice"] = NONE if messages and messages[-1]["role"] == "tool" else choice
        options |= _held(prompt)
        pipeline = self._pipeline({name: given[name] for name in _LOADING if name in given})
        answer = pipeline.stream(messages, **options)
        parser = answer.tools.parser() if answer.tools is not None else None
        said = ""
        try:
            for chunk in answer if stream else ():
                text = chunk.text
                if parser is not None:
                    parser.feed(text)
                    text = parser.content.removeprefix(said)  # a call that breaks off is text, too
                if text:
                    said += text
                    yield StreamEvent("text", text)
            result = answer.result
        finally:
            answer.close()
        if rest := result.content.removeprefix(said):  # also a call that was cut off, which is text
            yield StreamEvent("text", rest)
        for call in result.tool_calls:
            yield StreamEvent("tool_call_name", call.name, tool_call_id=call.id)
            yield StreamEvent("tool_call_args", call.arguments, tool_call_id=call.id)
            response.add_tool_call(llm.ToolCall(call.name, json.loads(call.arguments), call.id))
        _report(response, result, pipeline)

    def _pipeline(self, wanted: dict[str, Any]) -> Pipeline:
        """Return the pipeline that these options choose; keep it for the next prompt."""
        import specport
        from specport.progress import progress_bar

        with self._lock:
            if self._loaded is not None and self._loaded[0] == wanted:
                return self._loaded[1]
            if self._loaded is not None:
                self._loaded[1].close()
                self._loaded = None
            chosen = {name: value for name, value in wanted.items() if name != "fast"}
            with progress_bar() as progress:
                pipeline = specport.load(**chosen, exact=not wanted.get("fast"), progress=progress)
            self._loaded = (wanted, pipeline)
            return pipeline

    def close(self) -> None:
        """Release the model."""
        with self._lock:
            loaded, self._loaded = self._loaded, None
        if loaded is not None:
            loaded[1].close()


def messages_of(chain: Sequence[Message]) -> list[dict[str, Any]]:
    """Return a conversation of `llm` in OpenAI's format. Raises InvalidInput where it has an attachment."""
    return [told for message in chain for told in _messages(message.role, message.parts)]


def _messages(role: str, parts: Sequence[Part]) -> Iterator[dict[str, Any]]:
    texts, calls = [], []
    for part in parts:
        if isinstance(part, TextPart):
            texts.append(part.text)
        elif isinstance(part, ToolCallPart):
            function = {"name": part.name, "arguments": json.dumps(part.arguments, ensure_ascii=False)}
            calls.append({"id": part.tool_call_id or "", "type": "function", "function": function})
        elif isinstance(part, ToolResultPart) and not part.attachments:
            yield {"role": "tool", "tool_call_id": part.tool_call_id or "", "content": part.output}
        elif not isinstance(part, ReasoningPart):  # which no model reads again
            raise InvalidInput("this model reads text only", "leave attachments out")
    if texts or calls:
        message: dict[str, Any] = {"role": role, "content": "\n".join(texts)}
        yield {**message, "tool_calls": calls} if calls else message


def _held(prompt: llm.Prompt) -> dict[str, Any]:
    """Return the options for what the answer is held to. Raises InvalidInput."""
    from specport.text.grammar.grammar import Grammar

    if prompt.schema and prompt.tools:
        raise InvalidInput("an answer cannot have a schema and tools at once", "leave one of them out")
    if prompt.schema:
        return {"grammar": Grammar.json_schema(prompt.schema)}
    tools = []
    for tool in prompt.tools:
        if not isinstance(tool, llm.Tool):
            raise InvalidInput(f"the tool {tool.name} runs on a server of its provider only")
        # Functions of Python take no other arguments than those that they name.
        parameters = {"type": "object", "properties": {}, "additionalProperties": False, **tool.input_schema}
        function = {"name": tool.name, "description": tool.description or "", "parameters": parameters}
        tools.append({"type": "function", "function": {**function, "strict": _can_be_held(parameters)}})
    return {"tools": tuple(tools)} if tools else {}


def _can_be_held(schema: dict[str, Any]) -> bool:
    from specport.text.grammar.grammar import Grammar

    try:
        Grammar.json_schema(schema)
    except InvalidInput:
        return False
    return True


def _report(response: llm.Response, result: Result, pipeline: Pipeline) -> None:
    metrics = result.metrics
    response.set_resolved_model(pipeline.model_name)
    response.set_usage(
        input=metrics.num_prompt_tokens,
        output=metrics.num_output_tokens,
        details={
            "cached_tokens": metrics.num_cached_tokens,
            "drafted_tokens": metrics.num_draft_tokens,
            "accepted_tokens": metrics.num_accepted_tokens,
            "ttft_ms": round(metrics.ttft_s * 1e3, 1),
            "tpot_ms": round(metrics.tpot_s * 1e3, 2),
        },
    )
    response.response_json = {"finish_reason": result.finish_reason, "metrics": metrics.as_dict()}
