"""OpenAI's own client against the server: every parameter that its methods document."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.resources.chat.completions import Completions as ChatCompletions
from openai.resources.completions import Completions
from support.processes.own_cache import own_cache  # noqa: F401
from support.processes.served import NAME, listening, load_tiny

from specport.pipeline import Pipeline
from specport.serve.openai.supported import NOT_SUPPORTED

KEY = "a key"
MESSAGES: Any = [{"role": "system", "content": "12"}, {"role": "user", "content": "hello world"}]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    with load_tiny(tmp_path_factory.mktemp("tiny")) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def client(pipeline: Pipeline) -> Iterator[openai.OpenAI]:
    with (
        listening(pipeline, keys=[KEY]) as (url, _),
        openai.OpenAI(base_url=f"{url}/v1", api_key=KEY) as made,
    ):
        yield made


def chat(client: openai.OpenAI, **fields: Any) -> Any:
    fields = {"model": NAME, "messages": MESSAGES, "temperature": 0, "max_tokens": 24, **fields}
    return client.chat.completions.create(**fields)


def complete(client: openai.OpenAI, **fields: Any) -> Any:
    fields = {"model": NAME, "prompt": "hello world", "temperature": 0, "max_tokens": 24, **fields}
    return client.completions.create(**fields)


def content(reply: Any) -> str:
    return reply.choices[0].message.content


# Parameters of `create`, with a value each, that change the answer.
CHANGING: dict[str, Any] = {
    "frequency_penalty": 2.0, "presence_penalty": 2.0, "logit_bias": {"70": 100}, "max_tokens": 3,
    "temperature": 1.5, "stop": None,
}  # fmt: skip
# The same for those of specport and vLLM, in extra_body.
EXTRA: dict[str, Any] = {"repetition_penalty": 1.9, "min_tokens": 20, "ignore_eos": False}
OTHERS = {"model", "stream", "stream_options", "n", "seed", "top_p", "user", "metadata", "service_tier"}
IGNORED = {
    "metadata": {"a": "b"}, "service_tier": "auto", "user": "me", "safety_identifier": "x",
    "prompt_cache_key": "k", "prompt_cache_retention": "24h", "prompt_cache_options": {},
}  # fmt: skip
STRUCTURE = {  # tried in test_structure.py
    "logprobs", "top_logprobs", "response_format", "tools", "tool_choice", "parallel_tool_calls",
}  # fmt: skip
REFUSED: dict[str, Any] = {
    "audio": {"voice": "alloy", "format": "wav"}, "functions": [{"name": "f"}],
    "function_call": {"name": "f"},
    "modalities": ["text", "audio"], "moderation": {"a": "b"},
    "prediction": {"type": "content", "content": "x"},
    "reasoning_effort": "high",
    "store": True, "verbosity": "low", "web_search_options": {},
    "best_of": 2, "echo": True, "suffix": "x",
}  # fmt: skip


def documented(create: Any) -> set[str]:
    return {*inspect.signature(create).parameters} - {
        "self", "extra_headers", "extra_query", "extra_body", "timeout", "messages", "prompt",
    }  # fmt: skip


def test_every_documented_parameter_is_tried_here() -> None:
    tried = {*CHANGING, *OTHERS, *IGNORED, *REFUSED, *STRUCTURE, "max_completion_tokens"}
    assert documented(ChatCompletions.create) | documented(Completions.create) == tried
    assert {*REFUSED} >= {*NOT_SUPPORTED} and not {*CHANGING, *OTHERS, *IGNORED} & {*NOT_SUPPORTED}


def test_parameters_that_change_the_answer_do(client: openai.OpenAI, pipeline: Pipeline) -> None:
    long = {"max_tokens": 60, "extra_body": {"ignore_eos": True}}
    names = {"max_tokens": "max_new_tokens", "min_tokens": "min_new_tokens"}
    base = {"max_new_tokens": 60, "ignore_eos": True}
    plain, raw = content(chat(client, **long)), complete(client, **long).choices[0].text
    assert plain == pipeline.generate(MESSAGES, **base).text
    assert raw == pipeline.generate("hello world", raw=True, **base).text
    for name, value in CHANGING.items():
        given = [each for each in plain[9:] if each.isascii()][:1] if name == "stop" else value
        options: Any = {**base, names.get(name, name): given, "seed": 3}
        if name == "logit_bias":
            options[name] = {int(token): amount for token, amount in value.items()}
        asked = {**long, name: given, "seed": 3}
        reply = content(chat(client, **asked))
        assert reply == pipeline.generate(MESSAGES, **options).text != plain, name
        text = complete(client, **asked).choices[0].text
        assert text == pipeline.generate("hello world", raw=True, **options).text, name
    for name, value in EXTRA.items():
        reply = content(chat(client, max_tokens=60, extra_body={name: value}))
        options = {"max_new_tokens": 60, names.get(name, name): value}
        assert reply == pipeline.generate(MESSAGES, **options).text, name
    assert content(chat(client, max_completion_tokens=2)) == content(chat(client, max_tokens=2))


def test_sampling_is_reproducible(client: openai.OpenAI, pipeline: Pipeline) -> None:
    for fields, extra in (
        ({"temperature": 0.9, "seed": 4}, {}), ({"temperature": 1.1, "top_p": 0.6, "seed": 4}, {}),
        ({"temperature": 1.5, "seed": 4}, {"top_k": 3}), ({"temperature": 1.5, "seed": 4}, {"min_p": 0.3}),
    ):  # fmt: skip
        first, second = (content(chat(client, **fields, extra_body=extra)) for _ in range(2))
        assert first == second == pipeline.generate(MESSAGES, max_new_tokens=24, **fields, **extra).text
    likeliest = chat(client, temperature=1.0, top_p=0)
    assert content(likeliest) == content(chat(client))
    assert content(chat(client, temperature=1.0, extra_body={"top_k": 1})) == content(likeliest)
    assert chat(client, temperature=1.0, seed=-5, extra_body={"top_k": -1}).choices


def test_several_choices(client: openai.OpenAI) -> None:
    reply = chat(client, n=3, temperature=1.2, seed=1)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in reply.choices}) == 3
    assert reply.usage.completion_tokens <= 72
    texts = ["", "", ""]
    for chunk in chat(client, n=3, temperature=1.2, seed=1, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [choice.message.content for choice in reply.choices]


def test_streams(client: openai.OpenAI) -> None:
    whole = chat(client)
    *chunks, last = chat(
        client, stream=True, stream_options={"include_usage": True, "include_obfuscation": False}
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == content(whole)
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].choices[0].finish_reason
    assert last.choices == [] and last.usage.total_tokens == whole.usage.total_tokens
    assert last.model_extra["metrics"]["speculative_decoding"]["num_spec_steps"] > 0
    pieces = complete(client, stream=True)
    assert "".join(c.choices[0].text for c in pieces) == complete(client).choices[0].text
    with client.chat.completions.stream(
        model=NAME, messages=MESSAGES, temperature=0, max_tokens=24
    ) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == content(whole)


def test_replies_have_the_documented_form(client: openai.OpenAI) -> None:
    reply = chat(client)
    assert reply.id.startswith("chatcmpl-") and reply.object == "chat.completion" and reply.model == NAME
    assert (
        reply.choices[0].finish_reason in ("stop", "length") and reply.choices[0].message.role == "assistant"
    )
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert 0 <= reply.usage.prompt_tokens_details.cached_tokens < reply.usage.prompt_tokens
    assert reply.model_extra["metrics"]["speculative_decoding"]["num_draft_tokens"] > 0
    old = complete(client, prompt=["hello", "world"])
    assert old.object == "text_completion" and [choice.index for choice in old.choices] == [0, 1]
    assert [model.id for model in client.models.list()] == [NAME] and client.models.retrieve(NAME).id == NAME


def test_speculation_is_an_option_of_a_request(client: openai.OpenAI) -> None:
    off = chat(client, extra_body={"speculative": {"draft": "none"}})
    assert off.model_extra["metrics"]["speculative_decoding"] is None and content(off) == content(
        chat(client)
    )


def test_parameters_that_are_ignored(client: openai.OpenAI) -> None:
    assert content(chat(client, **IGNORED)) == content(chat(client))
    assert complete(client, user="me").choices[0].text == complete(client).choices[0].text


def test_parameters_that_are_not_supported_are_named(client: openai.OpenAI) -> None:
    for name, value in REFUSED.items():
        if value is None:
            continue
        create, asked = (
            (chat, ChatCompletions) if name in documented(ChatCompletions.create) else (complete, None)
        )
        assert asked is not None or name in documented(Completions.create)
        with pytest.raises(openai.BadRequestError) as found:
            create(client, **{name: value})
        assert found.value.param == name and f"{name} is not supported" in str(found.value)


def test_errors_are_those_of_the_client(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as found:
        chat(client, model="gpt-4o")
    assert found.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        chat(client, messages=[{"role": "user", "content": "hello world " * 900}])
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="no such word"):
        chat(client, messages=[{"role": "user", "content": "refused"}])
    with pytest.raises(openai.BadRequestError, match="no embeddings"):
        client.embeddings.create(model=NAME, input="hello")
    with pytest.raises(openai.AuthenticationError):
        chat(client.with_options(api_key="another"))
