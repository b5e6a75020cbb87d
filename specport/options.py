"""Options of one generation: sampling parameters and text options. Plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specport.core.sampling.logprobs import MOST
from specport.core.sampling.params import SamplingParams, whole_number
from specport.errors import InvalidInput
from specport.text.grammar.grammar import Grammar


@dataclass(frozen=True)
class GenerationOptions(SamplingParams):
    """Hold how to generate. Greedy by default.

    stop:     strings that end the text; they are not part of it.
    system:   system message before a prompt that is a plain string.
    raw:      encode a string prompt as it is, without the chat template.
    ignore_eos: end at max_new_tokens or a stop string only; end tokens become part of the output.
    logprobs: give the log-probability of each output token, and of so many likeliest tokens in its place
              (`Result.logprobs`, `Chunk.logprobs`): 0 to 20; None = none. They are the log-softmax of the
              target's logits before penalties and temperature, as OpenAI means them, and the same with any
              drafter.
    grammar:  language that the text is held to; None = any text.
    tools:    functions that the model may call, as in OpenAI's API; the prompt is a conversation then.
    tool_choice: "auto", "none", "required", or {"type": "function", "function": {"name": ...}}; None = auto.
    parallel_tool_calls: whether an answer may have several calls, where calls are required or strict.
    """

    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()
    system: str | None = None
    raw: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None
    grammar: Grammar | None = None
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: str | Mapping[str, Any] | None = None
    parallel_tool_calls: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        most = whole_number("max_new_tokens", self.max_new_tokens)
        if most < 1:
            raise InvalidInput(f"max_new_tokens is {most}; it must be 1 or more")
        object.__setattr__(self, "max_new_tokens", most)
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if not all(isinstance(text, str) for text in stop):
            raise InvalidInput(f"stop is {self.stop!r}; it must be a string or several")
        if not all(stop):
            raise InvalidInput("a stop string is empty")
        object.__setattr__(self, "stop", stop)
        if self.logprobs is not None:
            count = whole_number("logprobs", self.logprobs)
            if not 0 <= count <= MOST:
                raise InvalidInput(f"logprobs is {count}; it must be between 0 and {MOST}")
            object.__setattr__(self, "logprobs", count)
        if not isinstance(self.grammar, Grammar | None):
            raise InvalidInput(
                "grammar is not a grammar", 'make one, as in specport.Grammar.json_schema({"type": "object"})'
            )

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> GenerationOptions:
        """Return the options by name; None means the default. Raises InvalidInput for unknown names."""
        known = cls.__dataclass_fields__
        if unknown := sorted(set(options) - set(known)):
            raise InvalidInput(f"unknown option: {', '.join(unknown)}", f"options are {', '.join(known)}")
        try:
            return cls(**{name: value for name, value in options.items() if value is not None})
        except TypeError as error:
            raise InvalidInput(f"an option has a value of the wrong type: {error}") from error
