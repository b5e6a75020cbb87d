"""A model for smolagents that runs in the agent's process, with speculation."""

from __future__ import annotations

import inspect
from collections.abc import Generator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from smolagents.models import (
    MODEL_REGISTRY,
    ChatMessage,
    ChatMessageStreamDelta,
    ChatMessageToolCallFunction,
    ChatMessageToolCallStreamDelta,
    MessageRole,
    Model,
    TokenUsage,
)
from smolagents.tools import Tool

import specport
from specport.agents.conversation import messages_of, tool_schema
from specport.agents.defaults import MAX_TOKENS
from specport.agents.totals import Totals
from specport.core.metrics import Metrics
from specport.errors import InvalidInput
from specport.pipeline import Pipeline
from specport.stream import Result, Stream
from specport.text.grammar.grammar import Grammar, from_response_format
from specport.text.tools.definitions import AUTO, NONE, REQUIRED
from specport.text.tools.parser import CallDelta, Delta

_LOADING = frozenset(inspect.signature(specport.load).parameters)
_OF_TOOLS = ("tools", "tool_choice", "parallel_tool_calls")
# Names of the same thing in OpenAI's API.
_SYNONYMS = {
    "max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens", "min_tokens": "min_new_tokens",
}  # fmt: skip


class SpecportModel(Model):  # type: ignore[misc]
    """Generate an agent's steps with speculation, in this process.

    model:    as for `specport.load`: hub id, folder or .gguf file; None = the embedded SmolLM2-135M-Instruct.
    pipeline: a pipeline that is loaded already, instead; it stays the caller's to close.
    options:  the other arguments of `specport.load` (draft, device, draft_device, history, ...), and the
              fields of `specport.GenerationOptions`, under OpenAI's names too (max_tokens, temperature, ...).
              They win over what a call says, as smolagents has it.

    With the default draft, what the agent wrote in earlier steps and runs is drafted by suffix. The prefix
    cache keeps the conversation, so that a step reads only what is new. `history="FOLDER"` keeps what was
    written for later processes, and `prefix_cache="FOLDER"` what was read.

    Greedy unless a temperature is given, and at most 2048 tokens an answer. Where an agent gives tools, an
    answer is one call, with arguments by the tool's schema; `tool_choice="auto"` and
    `parallel_tool_calls=True` change that. Stop sequences end free text. An answer that is held to a schema
    or a call ends where its grammar ends.

    last_metrics: of the last generation (drafted and accepted tokens, TTFT, TPOT); None before the first.
    totals:       sums since the model was made, or since `reset_totals`.

    Raises SpecportError with the next step where something cannot be used.
    """

    def __init__(self, model: str | None = None, *, pipeline: Pipeline | None = None, **options: Any) -> None:
        loading = {name: options.pop(name) for name in [*options] if name in _LOADING}
        model = options.pop("model_id", None) or model  # smolagents' name
        if pipeline is not None and (model is not None or loading):
            raise InvalidInput("a loaded pipeline has its model already", "give either it or a model's name")
        self._named = None if pipeline is not None else {"model": model, **loading}
        super().__init__(flatten_messages_as_text=True, **options)
        self._options(self._prepare_completion_kwargs([]))  # what is wrong is told before a model is loaded
        self.pipeline = specport.load(model, **loading) if pipeline is None else pipeline
        self.model_id = self.pipeline.model_name
        self.last_metrics: Metrics | None = None
        self.totals = Totals()

    @property
    def supports_stop_parameter(self) -> bool:
        return True

    def reset_totals(self) -> Totals:
        """Begin new totals, as for a new run; return those so far."""
        found, self.totals = self.totals, Totals()
        return found

    def close(self) -> None:
        """Release the model, where this object has loaded it."""
        if self._named is not None:
            self.pipeline.close()

    def __enter__(self) -> SpecportModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def generate(
        self,
        messages: list[ChatMessage | dict[str, Any]],
        stop_sequences: list[str] | None = None,
        response_format: dict[str, Any] | None = None,
        tools_to_call_from: list[Tool] | None = None,
        **kwargs: Any,
    ) -> ChatMessage:
        """Return the answer to a conversation. See `smolagents.Model.generate`."""
        stream = self._begin(messages, stop_sequences, response_format, tools_to_call_from, kwargs)
        try:
            result = stream.result
        finally:
            stream.close()
        self._count(result.metrics)
        calls = [call.as_openai() for call in result.tool_calls]
        return ChatMessage(
            MessageRole.ASSISTANT,
            # smolagents would tell an empty text beside the calls.
            content=None if calls and not result.content.strip() else result.content,
            tool_calls=calls or None,
            raw={"finish_reason": result.finish_reason, "metrics": result.metrics.as_dict()},
            token_usage=_usage(result),
        )

    def generate_stream(
        self,
        messages: list[ChatMessage | dict[str, Any]],
        stop_sequences: list[str] | None = None,
        response_format: dict[str, Any] | None = None,
        tools_to_call_from: list[Tool] | None = None,
        **kwargs: Any,
    ) -> Generator[ChatMessageStreamDelta]:
        """Yield the answer as it is accepted, and its token usage last. Dropping the generator ends it."""
        stream = self._begin(messages, stop_sequences, response_format, tools_to_call_from, kwargs)
        parser = stream.tools.parser() if stream.tools is not None else None
        try:
            for chunk in stream:
                if parser is None:
                    yield ChatMessageStreamDelta(content=chunk.text)
                else:
                    yield from map(_delta, parser.feed(chunk.text))
            if parser is not None:
                yield from map(_delta, parser.finish())
        finally:
            stream.close()
            self._count(stream.result.metrics)
        yield ChatMessageStreamDelta(content="", token_usage=_usage(stream.result))

    def to_dict(self) -> dict[str, Any]:
        """Return what `from_dict` makes the same model of. Raises InvalidInput where it has no name."""
        if self._named is None:
            raise InvalidInput(
                "a model around a loaded pipeline cannot be written down",
                'make it by name, as in SpecportModel(model="FOLDER", draft="auto")',
            )
        options = {name: asdict(v) if isinstance(v, Grammar) else v for name, v in self.kwargs.items()}
        named = {
            name: str(value) if isinstance(value, Path) else value for name, value in self._named.items()
        }
        named.pop("progress", None)
        return {**named, **options}

    def _begin(
        self,
        messages: list[ChatMessage | dict[str, Any]],
        stop_sequences: list[str] | None,
        response_format: dict[str, Any] | None,
        tools: list[Tool] | None,
        kwargs: dict[str, Any],
    ) -> Stream:
        asked = self._prepare_completion_kwargs(
            [], stop_sequences=stop_sequences, response_format=response_format, **kwargs
        )
        if tools:
            asked.setdefault("tools", [tool_schema(tool) for tool in tools])
        options = self._options(asked)
        return self.pipeline.stream(messages_of(messages, tools=bool(options.get("tools"))), **options)

    def _options(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Return specport's options for what smolagents asks. Raises InvalidInput for unknown ones."""
        found = {_SYNONYMS.get(name, name): value for name, value in asked.items() if name != "messages"}
        found.setdefault("max_new_tokens", MAX_TOKENS)
        format_ = found.pop("response_format", None)
        if format_ is not None:
            found["grammar"] = from_response_format(format_)
        elif isinstance(found.get("grammar"), Mapping):  # as `to_dict` writes it
            found["grammar"] = Grammar(**found["grammar"])
        held = format_ is not None
        if found.get("tools"):
            found = {"tool_choice": REQUIRED, "parallel_tool_calls": False, **found}
            held = held or found["tool_choice"] not in (None, AUTO, NONE)
        else:
            found = {name: value for name, value in found.items() if name not in _OF_TOOLS}
        if held:
            found.pop("stop", None)
        specport.GenerationOptions.parse(found)
        return found

    def _count(self, metrics: Metrics) -> None:
        self.last_metrics = metrics
        self.totals.add(metrics)


def _usage(result: Result) -> TokenUsage:
    return TokenUsage(result.metrics.num_prompt_tokens, result.metrics.num_output_tokens)


def _delta(delta: Delta) -> ChatMessageStreamDelta:
    if not isinstance(delta, CallDelta):
        return ChatMessageStreamDelta(content=delta.text)
    function = ChatMessageToolCallFunction(name=delta.name or "", arguments=delta.arguments)
    call = ChatMessageToolCallStreamDelta(delta.index, delta.id or None, "function", function)
    return ChatMessageStreamDelta(tool_calls=[call])


# An agent that was saved names the class of its model; smolagents finds it here.
MODEL_REGISTRY.setdefault("SpecportModel", SpecportModel)
