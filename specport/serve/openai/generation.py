"""What a request asks for, in specport's own terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from pydantic import ValidationError

from specport.errors import InvalidInput
from specport.options import GenerationOptions
from specport.pipeline import Pipeline
from specport.serve.openai.errors import ApiError, bad_request, from_input, from_validation
from specport.serve.openai.schema import ChatRequest, CompletionRequest, Request
from specport.serve.openai.supported import without_unsupported
from specport.serve.settings import Limits, Sampling

COMPLETION_TOKENS = 16  # of a completion that does not say how many, as in OpenAI's API
_Request = TypeVar("_Request", ChatRequest, CompletionRequest)


@dataclass(frozen=True)
class Asked:
    """Hold a request that was checked.

    prompts: token ids; each is answered by `n` sequences with these options. They are numbered by prompt.
    chat:    whether it came with messages.
    max_draft_tokens: see `Generation`.
    """

    prompts: tuple[list[int], ...]
    options: tuple[GenerationOptions, ...]
    chat: bool
    n: int = 1
    max_draft_tokens: int | None = None
    stream: bool = False
    include_usage: bool = False


def read_chat(
    body: Mapping[str, Any], pipeline: Pipeline, name: str, limits: Limits, sampling: Sampling
) -> Asked:
    """Check a request with messages. Raises ApiError."""
    request = _validated(ChatRequest, body, name)
    if not request.messages:
        raise bad_request("messages is empty", "messages", "invalid_value")
    if not pipeline.tokenizer.has_chat_template:
        raise bad_request("this model has no chat template; use /v1/completions", "messages")
    # Templates know system; developer is OpenAI's newer name for it.
    messages = [
        {
            **message.model_dump(exclude={"refusal"}, exclude_none=True),
            "content": message.content if message.content is not None else message.refusal or "",
            "role": "system" if message.role == "developer" else message.role,
        }
        for message in request.messages
    ]
    ids = _encoded(partial(pipeline.encode, messages, GenerationOptions()), "messages")
    room = pipeline.engine.model.max_context - len(ids)
    return _asked(request, (ids,), request.most_tokens or room, pipeline, limits, sampling)


def read_completion(
    body: Mapping[str, Any], pipeline: Pipeline, name: str, limits: Limits, sampling: Sampling
) -> Asked:
    """Check a request with prompts. Raises ApiError."""
    request = _validated(CompletionRequest, body, name)
    if len(request.prompt) > limits.choices:
        raise bad_request(f"prompt has more than {limits.choices} texts", "prompt", "invalid_value")
    vocab, raw = pipeline.engine.model.vocab_size, GenerationOptions(raw=True)
    prompts = []
    for prompt in request.prompt:
        if isinstance(prompt, str):
            prompts.append(_encoded(partial(pipeline.encode, prompt, raw), "prompt"))
        elif not all(0 <= token < vocab for token in prompt):
            raise bad_request(f"prompt: token ids must be below {vocab}", "prompt", "invalid_value")
        else:
            prompts.append(_encoded(partial(pipeline.fitting, prompt), "prompt"))
    most = request.most_tokens or COMPLETION_TOKENS
    return _asked(request, tuple(prompts), most, pipeline, limits, sampling)


def _validated(kind: type[_Request], body: Mapping[str, Any], name: str) -> _Request:
    """Return the request. Raises ApiError where a field is wrong, or where it asks for another model."""
    try:
        request = kind.model_validate(without_unsupported(body))
    except ValidationError as error:
        raise from_validation(error) from None
    if request.model is not None and request.model != name:
        raise unknown_model(request.model, name)
    if request.stream_options is not None and not request.stream:
        raise bad_request("stream_options needs stream: true", "stream_options", "invalid_value")
    return request


def unknown_model(asked: str, name: str) -> ApiError:
    return ApiError(
        404,
        f"there is no model {asked!r} here; this server has {name!r}",
        code="model_not_found",
        param="model",
    )


def _encoded(encode: Callable[[], list[int]], param: str) -> list[int]:
    try:
        return encode()
    except InvalidInput as error:
        raise from_input(error, param) from error


def _asked(
    request: Request,
    prompts: tuple[list[int], ...],
    most: int,
    pipeline: Pipeline,
    limits: Limits,
    sampling: Sampling,
) -> Asked:
    n = request.n or 1
    vocab = pipeline.engine.model.vocab_size
    for wrong, name, rule in (
        (n * len(prompts) > limits.choices, "n", f"at most {limits.choices} answers to a request"),
        (len(request.stop) > limits.max_stop, "stop", f"at most {limits.max_stop} texts"),
        (
            any(len(text) > limits.max_stop_length for text in request.stop),
            "stop",
            f"at most {limits.max_stop_length} characters",
        ),
        (len(request.logit_bias) > limits.max_bias, "logit_bias", f"at most {limits.max_bias} entries"),
        (any(t >= vocab for t in request.logit_bias), "logit_bias", f"token ids must be below {vocab}"),
    ):
        if wrong:
            raise bad_request(f"{name}: {rule}", name, "invalid_value")
    common = _options(request, most, sampling)
    try:
        # Each sequence has a seed of its own; else all answers to a prompt would be the same.
        seeds = [
            None if request.seed is None else (request.seed + i) % 2**64 for i in range(n * len(prompts))
        ]
        options = tuple(GenerationOptions.parse({**common, "seed": seed}) for seed in seeds)
    except InvalidInput as error:
        raise from_input(error) from error
    speculative = request.speculative
    plain = speculative is not None and speculative.draft == "none"
    return Asked(
        prompts,
        options,
        isinstance(request, ChatRequest),
        n,
        0 if plain else speculative.num_draft_tokens if speculative is not None else None,
        bool(request.stream),
        bool(request.stream_options and request.stream_options.include_usage),
    )


def _options(request: Request, most: int, sampling: Sampling) -> dict[str, Any]:
    """Return the fields of `GenerationOptions` but the seed. None = its own default."""
    given = {name: getattr(request, name) for name in vars(sampling)}
    chosen = {
        name: default if given[name] is None else given[name] for name, default in vars(sampling).items()
    }
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
        "max_new_tokens": most,
        "stop": tuple(request.stop),
    }
