"""What a request asks for, in specport's own terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from pydantic import ValidationError

from specport.errors import InvalidInput
from specport.options import GenerationOptions
from specport.pipeline import Pipeline
from specport.request import TextRequest
from specport.serve.openai.errors import ApiError, bad_request, from_input, from_validation, naming
from specport.serve.openai.schema import ChatRequest, CompletionRequest, Request
from specport.serve.openai.structure import held_to, tools_of
from specport.serve.openai.supported import without_unsupported
from specport.serve.settings import Limits, Sampling

COMPLETION_TOKENS = 16  # of a completion that does not say how many, as in OpenAI's API
_Request = TypeVar("_Request", ChatRequest, CompletionRequest)
_Either = ChatRequest | CompletionRequest


@dataclass(frozen=True)
class Asked:
    """Hold a request that was checked.

    requests: one for each sequence.
    chat:    whether it came with messages.
    n:       sequences with the same prompt, which stand side by side.
    max_draft_tokens: see `Generation`.
    """

    requests: tuple[TextRequest, ...]
    chat: bool
    n: int
    max_draft_tokens: int | None
    stream: bool
    include_usage: bool
    continuous_usage: bool
    include_speculation: bool


class RequestReader:
    """Check requests to one model. Thread-safe.

    name: of the model, as clients ask for it. sampling: of requests that do not say how.
    """

    def __init__(self, pipeline: Pipeline, name: str, limits: Limits, sampling: Sampling) -> None:
        self.name = name
        self._pipeline, self._limits, self._sampling = pipeline, limits, sampling
        self._model = pipeline.engine.model

    def chat(self, body: Mapping[str, Any]) -> Asked:
        """Check a request with messages. Raises ApiError."""
        request = self._validated(ChatRequest, body)
        if not request.messages:
            raise bad_request("messages is empty", "messages", "invalid_value")
        if not self._pipeline.tokenizer.has_chat_template:
            raise bad_request("this model has no chat template; use /v1/completions", "messages")
        options = self._options(request, 1, request.most_tokens or self._model.max_context)
        messages = [message.for_template() for message in request.messages]
        first = naming("messages", partial(self._pipeline.request, messages, options[0]))
        return _asked(request, [first], options, chat=True)

    def completion(self, body: Mapping[str, Any]) -> Asked:
        """Check a request with prompts. Raises ApiError."""
        request = self._validated(CompletionRequest, body)
        options = self._options(request, len(request.prompt), request.most_tokens or COMPLETION_TOKENS)
        prompts: Sequence[str | list[int]] = request.prompt
        firsts = [
            self._prompt(prompt, replace(each, raw=True))
            for prompt, each in zip(prompts, options[:: request.n or 1], strict=True)
        ]
        return _asked(request, firsts, options, chat=False)

    def unknown_model(self, asked: str) -> ApiError:
        """Return the error for a model that is not this one."""
        message = f"there is no model {asked!r} here; this server has {self.name!r}"
        return ApiError(404, message, code="model_not_found", param="model")

    def _validated(self, kind: type[_Request], body: Mapping[str, Any]) -> _Request:
        try:
            request = kind.model_validate(without_unsupported(body))
        except ValidationError as error:
            raise from_validation(error) from None
        if request.model is not None and request.model != self.name:
            raise self.unknown_model(request.model)
        if request.stream_options is not None and not request.stream:
            raise bad_request("stream_options needs stream: true", "stream_options", "invalid_value")
        if isinstance(request, ChatRequest) and request.top_logprobs and not request.logprobs:
            raise bad_request("top_logprobs needs logprobs: true", "top_logprobs", "invalid_value")
        return request

    def _prompt(self, prompt: str | list[int], options: GenerationOptions) -> TextRequest:
        if isinstance(prompt, str):
            return naming("prompt", partial(self._pipeline.request, prompt, options))
        if not all(0 <= token < self._model.vocab_size for token in prompt):
            below = f"prompt: token ids must be below {self._model.vocab_size}"
            raise bad_request(below, "prompt", "invalid_value")
        return TextRequest(naming("prompt", partial(self._pipeline.fitting, prompt)), options)

    def _options(self, request: _Either, num_prompts: int, most: int) -> tuple[GenerationOptions, ...]:
        """Return the options of each sequence. Raises ApiError where a limit is passed."""
        count = num_prompts * (request.n or 1)
        self._check(request, count)
        if (request.min_tokens or 0) > most:
            message = f"min_tokens: at most as many as the answer may have, {most}"
            raise bad_request(message, "min_tokens", "invalid_value")
        common = self._common(request) | {"max_new_tokens": most}
        first = request.seed
        # Each sequence has a seed of its own; else all answers to a prompt would be the same.
        seeds = [None if first is None else (first + i) % 2**64 for i in range(count)]
        try:
            return tuple(GenerationOptions.parse({**common, "seed": seed}) for seed in seeds)
        except InvalidInput as error:
            raise from_input(error) from error

    def _check(self, request: Request, count: int) -> None:
        limits, vocab = self._limits, self._model.vocab_size
        longest = max(map(len, request.stop), default=0)
        for wrong, name, rule in (
            (count > limits.choices, "n", f"at most {limits.choices} answers to a request"),
            (len(request.stop) > limits.max_stop, "stop", f"at most {limits.max_stop} texts"),
            (longest > limits.max_stop_length, "stop", f"at most {limits.max_stop_length} characters"),
            (len(request.logit_bias) > limits.max_bias, "logit_bias", f"at most {limits.max_bias} entries"),
            (any(t >= vocab for t in request.logit_bias), "logit_bias", f"token ids must be below {vocab}"),
        ):
            if wrong:
                raise bad_request(f"{name}: {rule}", name, "invalid_value")

    def _common(self, request: _Either) -> dict[str, Any]:
        """Return the options that all sequences of a request share. None = the library's default."""
        chosen = vars(self._sampling).copy()
        chosen.update({name: getattr(request, name) for name in chosen if getattr(request, name) is not None})
        if chosen["top_p"] == 0:  # OpenAI's API allows it: only the likeliest token is left
            chosen["top_p"], chosen["temperature"] = 1.0, 0.0
        return {
            **chosen,
            "top_k": max(0, chosen["top_k"]),  # vLLM's -1 is off, too
            "frequency_penalty": request.frequency_penalty,
            "presence_penalty": request.presence_penalty,
            "logit_bias": request.logit_bias,
            "min_new_tokens": request.min_tokens,
            "ignore_eos": request.ignore_eos,
            "stop": tuple(request.stop),
            "logprobs": request.num_logprobs,
            "grammar": held_to(request),
            **(tools_of(request) if isinstance(request, ChatRequest) else {}),
        }


def _asked(
    request: Request, firsts: list[TextRequest], options: tuple[GenerationOptions, ...], *, chat: bool
) -> Asked:
    """Return what is asked. firsts: the first sequence of each prompt. options: of all sequences."""
    n, speculative, streamed = request.n or 1, request.speculative, request.stream_options
    drafts = None if speculative is None else speculative.num_draft_tokens
    if speculative is not None and speculative.draft == "none":
        drafts = 0
    return Asked(
        requests=tuple(
            # Tools have a grammar of their own, which is in the first one's options.
            replace(firsts[i // n], options=replace(each, grammar=firsts[i // n].options.grammar))
            for i, each in enumerate(options)
        ),
        chat=chat,
        n=n,
        max_draft_tokens=drafts,
        stream=bool(request.stream),
        include_usage=bool(streamed and streamed.include_usage),
        continuous_usage=bool(streamed and streamed.include_usage and streamed.continuous_usage_stats),
        include_speculation=bool(streamed and streamed.include_speculation),
    )
