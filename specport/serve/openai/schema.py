"""The requests of OpenAI's API, with vLLM's names for what OpenAI does not have. Unknown fields are errors.

Limits that a server's owner sets are checked in `generation.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from specport.core.sampling.logprobs import MOST

INT64 = 2**63


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


def _token_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(each) is int for each in value)


def _prompts(value: Any) -> list[str] | list[list[int]]:
    """Return a prompt of any of OpenAI's four shapes as a list of texts, or of token ids."""
    if isinstance(value, str):
        return [value]
    if _token_ids(value):
        return [value]
    if isinstance(value, list) and value:
        if all(isinstance(each, str) for each in value):
            return value
        if all(map(_token_ids, value)):
            return value
    raise ValueError("must be a text, token ids, or a list of either")


def _stops(value: Any) -> list[str]:
    found = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(each, str) and each for each in found):
        raise ValueError("must be a text that is not empty, or several")
    return found


def _content(value: Any) -> str | None:
    """Return the text of a message, which may come in parts."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError("must be a text or a list of parts")
    texts = []
    for i, part in enumerate(value):
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise ValueError(f"part {i} has no type")
        if part["type"] not in ("text", "refusal"):
            raise ValueError(f"part {i} is of type {part['type']!r}; this server reads text only")
        text = part.get(part["type"])
        if not isinstance(text, str):
            raise ValueError(f"part {i} has no text")
        texts.append(text)
    return "\n".join(texts)


def _bias(value: Any) -> dict[int, float]:
    """Return amounts by token id, which are texts in JSON."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError("must be an object: token id -> amount")
    found = {}
    for token, amount in value.items():
        if not (token.isascii() and token.isdecimal() and len(token) < 10):
            raise ValueError(f"{token[:40]!r} is no token id")
        if type(amount) not in (int, float) or not -100 <= amount <= 100:
            raise ValueError(f"the amount for token {token} must be between -100 and 100")
        found[int(token)] = float(amount)
    return found


class StreamOptions(_Strict):
    """What a stream tells. include_speculation: who proposed each piece of text; an extension of specport."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None  # vLLM's name: the usage so far is in every chunk
    include_speculation: bool | None = None
    include_obfuscation: bool | None = None  # OpenAI pads its events; there is nothing to hide here


class Speculative(_Strict):
    """How to draft for this request. An extension of specport.

    draft: "none" = plain decoding, "default" = the server's draft.
    num_draft_tokens: most tokens of a draft; None = the policy's choice.
    """

    draft: Literal["none", "default"] = "default"
    num_draft_tokens: Annotated[int, Field(ge=0, lt=INT64)] | None = None


class Message(_Strict):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str | None, BeforeValidator(_content)] = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Message:
        if self.content is None and not (self.role == "assistant" and (self.refusal or self.tool_calls)):
            raise ValueError(f"a message of role {self.role} needs content")
        return self

    def for_template(self) -> dict[str, Any]:
        """Return the message as chat templates know it: OpenAI's newer role developer is the old system."""
        found = self.model_dump(exclude={"refusal"}, exclude_none=True)
        found["role"] = "system" if self.role == "developer" else self.role
        found["content"] = self.content if self.content is not None else self.refusal or ""
        return found


class StructuredOutputs(_Strict):
    """What the answer is held to, in vLLM's words: one of these. An extension for what OpenAI does not have.

    json: a JSON schema. regex: a regular expression. grammar: a Lark grammar. choice: one of these texts.
    """

    json_: dict[str, Any] | str | None = Field(default=None, alias="json")
    regex: str | None = None
    grammar: str | None = None
    choice: list[str] | None = None


class Request(_Strict):
    """What both endpoints take. None = the server's default."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, lt=INT64)] | None = None
    max_tokens: Annotated[int, Field(ge=1, lt=INT64)] | None = None
    min_tokens: Annotated[int, Field(ge=0, lt=INT64)] | None = None
    ignore_eos: bool | None = None
    stop: Annotated[list[str], BeforeValidator(_stops)] = Field(default_factory=list)
    seed: Annotated[int, Field(ge=-INT64, lt=INT64)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=INT64)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    logit_bias: Annotated[dict[int, float], BeforeValidator(_bias)] = Field(default_factory=dict)
    response_format: dict[str, Any] | None = None
    structured_outputs: StructuredOutputs | None = None
    speculative: Speculative | None = None


class ChatRequest(Request):
    messages: list[Message]
    max_completion_tokens: Annotated[int, Field(ge=1, lt=INT64)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None

    @property
    def num_logprobs(self) -> int | None:
        """Return how many likeliest tokens to tell of, beside each token's own; None = nothing."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def most_tokens(self) -> int | None:
        """Return the most output tokens. The newer name wins."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


class CompletionRequest(Request):
    prompt: Annotated[list[str] | list[list[int]], BeforeValidator(_prompts)]
    logprobs: Annotated[int, Field(ge=0, le=MOST)] | None = None

    @property
    def num_logprobs(self) -> int | None:
        """Return how many likeliest tokens to tell of, beside each token's own; None = nothing."""
        return self.logprobs

    @property
    def most_tokens(self) -> int | None:
        """Return the most output tokens."""
        return self.max_tokens
