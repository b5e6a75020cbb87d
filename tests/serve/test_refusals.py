"""Requests that cannot be served: each is told what is wrong, in OpenAI's shape."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from support.processes.served import Served, run, served, toy

from specport.serve.openai.supported import NOT_SUPPORTED, NOT_SUPPORTED_IN_MESSAGES
from specport.serve.settings import Limits

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
USER = [{"role": "user", "content": "abc"}]
LIMITS = Limits(max_body=5000, max_stop=3, max_stop_length=9, max_choices=4, max_bias=3, max_depth=12)


def error(reply: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    found = reply.json()["error"]
    assert found.keys() == {"message", "type", "param", "code"} and found["message"]
    return found


def ask(*requests: tuple[str, Any], **options: Any) -> list[httpx.Response]:
    """Return the replies to bodies, given as bytes or as what JSON holds."""

    async def start() -> list[httpx.Response]:
        async with served(toy(max_context=300), LIMITS) as s:
            replies = [await _sent(s, path, body, **options) for path, body in requests]
            good = await s.chat("abc", max_tokens=3)
            assert good.status_code == 200 and not s.service.pipeline.engine.num_unfinished
            return replies

    return run(start())


async def _sent(s: Served, path: str, body: Any, **options: Any) -> httpx.Response:
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    return await s.client.post(
        path, content=body, **{"headers": {"content-type": "application/json"}, **options}
    )


FIELDS = [
    ("temperature", -0.1), ("temperature", 2.5), ("temperature", "1"), ("temperature", True), ("top_p", 1.5),
    ("top_k", -2), ("top_k", 1.5), ("min_p", -1), ("n", 0), ("n", 5), ("n", "2"), ("max_tokens", 0),
    ("max_tokens", 10**30), ("min_tokens", -1), ("seed", "x"), ("seed", 2**64), ("frequency_penalty", 3),
    ("min_tokens", 10**6),
    ("presence_penalty", -3), ("repetition_penalty", 0), ("stop", ""), ("stop", 3), ("stop", ["a", 3]),
    ("stop", ["a"] * 4), ("stop", "x" * 10), ("logit_bias", {"a": 1}), ("logit_bias", {"1": 200}),
    ("logit_bias", {"1": "x"}), ("logit_bias", {"99": 1}), ("logit_bias", {str(i): 1 for i in range(4)}),
    ("logit_bias", [1]), ("stream", "yes"), ("ignore_eos", 1), ("speculative", {"draft": "ngram"}),
    ("speculative", {"num_draft_tokens": -1}), ("speculative", "none"),
    ("stream_options", {"include_usage": True}),
    ("stream_options", {"x": 1}), ("stream_options", {"include_speculation": "yes"}), ("model", 3),
]  # fmt: skip


def test_a_field_that_is_wrong_is_named() -> None:
    replies = ask(*((CHAT, {"messages": USER, name: value}) for name, value in FIELDS))
    for (name, value), reply in zip(FIELDS, replies, strict=True):
        found = error(reply)
        assert str(found["param"]).partition(".")[0].partition("[")[0] == name, (name, value, found)
        assert name in found["message"] and found["type"] == "invalid_request_error"


def test_unknown_fields_are_named() -> None:
    replies = ask((CHAT, {"messages": USER, "tempreature": 1}),
                  (CHAT, {"messages": [{**USER[0], "colour": 1}]}),
                  (CHAT, {"messages": USER, "speculative": {"drafts": 1}}))  # fmt: skip
    names = ["tempreature", "messages[0].colour", "speculative.drafts"]
    for reply, name in zip(replies, names, strict=True):
        found = error(reply)
        assert (found["param"], found["code"]) == (name, "unknown_parameter") and name in found["message"]


ASKS = {
    "functions": [{}], "function_call": {"name": "f"},
    "modalities": ["audio"], "reasoning_effort": "high", "verbosity": "low", "store": True, "best_of": 2,
    "echo": True, "suffix": "x",
}  # fmt: skip


def test_what_is_not_supported_is_named_and_passes_where_it_asks_for_nothing() -> None:
    for name, passing in NOT_SUPPORTED.items():
        value = ASKS.get(name, {"some": "thing"})
        refused, null, *passed = ask((CHAT, {"messages": USER, name: value, "max_tokens": 3}),
                                     *((CHAT, {"messages": USER, name: each, "max_tokens": 3})
                                       for each in (None, *passing)))  # fmt: skip
        found = error(refused)
        assert (found["param"], found["code"]) == (name, "unsupported_parameter")
        assert f"{name} is not supported" in found["message"]
        assert all(reply.status_code == 200 for reply in (null, *passed)), name
    for name in NOT_SUPPORTED_IN_MESSAGES:
        (refused,) = ask((CHAT, {"messages": [{**USER[0], name: "x"}]}))
        assert error(refused)["param"] == f"messages[0].{name}"


def test_fields_that_change_no_answer_are_ignored() -> None:
    fields = {"user": "me", "metadata": {"a": "b"}, "service_tier": "auto", "safety_identifier": "x",
              "prompt_cache_key": "k"}  # fmt: skip
    (reply,) = ask((CHAT, {"messages": USER, "max_tokens": 3, **fields}))
    assert reply.status_code == 200


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not JSON"), (b"{", "not JSON"), (b"[1]", "must be a JSON object"), (b"null", "must be a JSON"),
        (b'{"a": NaN}', "NaN"), (b'{"a": Infinity}', "Infinity"), (b"\xff\xfe{}", "not UTF-8"),
        (b'{"prompt": "\xc3"}', "not UTF-8"), (b'{"seed": ' + b"9" * 4500 + b"}", "not JSON"),
        (b'{"a":' * 300 + b"1" + b"}" * 300, "nested"), (b"[" * 4900, "nested"),
        (b'{"a":' * 13 + b"1" + b"}" * 13, "nested"),
        (b"{}", "prompt is missing"), (b'{"prompt": ""}', "empty"), (b'{"prompt": []}', "prompt"),
        (b'{"prompt": [[]]}', "prompt"), (b'{"prompt": ["a", 3]}', "prompt"),
        (b'{"prompt": [1, true]}', "prompt"),
        (b'{"prompt": [11]}', "below 11"), (b'{"prompt": [-1]}', "below 11"), (b'{"prompt": 7}', "prompt"),
        (b'{"prompt": ["a", "b", "c", "d", "e"]}', "at most 4"), (b'{"prompt": {"a": 1}}', "prompt"),
    ],
)  # fmt: skip
def test_bodies_that_are_no_request(body: bytes, said: str) -> None:
    (reply,) = ask((COMPLETIONS, body))
    assert said in error(reply)["message"]


MESSAGES: list[tuple[Any, str]] = [
    ([], "messages"), ("abc", "messages"), ([3], "messages[0]"),
    ([{"role": "robot", "content": "a"}], "messages[0].role"),
    ([{"content": "a"}], "messages[0].role"), ([{"role": "user", "content": 3}], "messages[0].content"),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "messages[0].content"),
    ([{"role": "user", "content": [{"text": "a"}]}], "messages[0].content"),
    ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content"),
    ([{"role": "user"}], "messages[0]"), ([{"role": "system", "content": None}], "messages[0]"),
    ([*USER, {"role": "assistant", "tool_calls": []}], "messages[1]"),
]  # fmt: skip


def test_messages_that_are_none() -> None:
    replies = ask(*((CHAT, {"messages": messages}) for messages, _ in MESSAGES))
    for (_, name), reply in zip(MESSAGES, replies, strict=True):
        found = error(reply)
        assert found["param"] == name, found
    assert "image_url" in replies[6].json()["error"]["message"]


def test_surrogates_do_not_break_the_reply() -> None:
    lone = b'"\\ud800"'
    for body in (b'{"prompt": "a", "model": ' + lone + b"}", b'{"prompt": "a", ' + lone + b": 1}"):
        (reply,) = ask((COMPLETIONS, body))
        error(reply, 404 if b"model" in body else 400)


def test_a_prompt_that_the_context_does_not_hold() -> None:
    replies = ask((CHAT, {"messages": [{"role": "user", "content": "a" * 300}]}),
                  (COMPLETIONS, {"prompt": [1] * 300}),
                  (COMPLETIONS, {"prompt": ["a", "b" * 300]}))  # fmt: skip
    for reply in replies:
        found = error(reply)
        assert found["code"] == "context_length_exceeded" and "300" in found["message"]
    (fits,) = ask((COMPLETIONS, {"prompt": [1] * 299, "max_tokens": 500}))
    assert fits.json()["usage"]["completion_tokens"] == 1


def test_another_model_embeddings_and_routes_that_are_not_there() -> None:
    async def start() -> None:
        async with served(toy()) as s:
            found = error(await s.chat("abc", model="gpt-4o"), 404)
            assert found["code"] == "model_not_found" and "'gpt-4o'" in found["message"]
            found = error(await s.post("/v1/embeddings", {"input": "abc"}))
            assert "no embeddings" in found["message"]
            assert error(await s.post("/v1/responses", {}), 404)["type"] == "not_found_error"
            error(await s.client.get(CHAT), 405)

    run(start())


def test_bodies_that_are_too_large_or_of_another_kind() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b" " * 1000

    async def start() -> None:
        async with served(toy(), LIMITS) as s:
            for content in (b" " * 5001, chunks()):
                error(await _sent(s, CHAT, content) if isinstance(content, bytes) else await s.client.post(
                    CHAT, content=content, headers={"content-type": "application/json"}), 413)  # fmt: skip
            for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
                error(await _sent(s, CHAT, {"messages": USER}, headers={"content-type": kind}), 415)
            good = {"content-type": "Application/JSON; charset=utf-8"}
            assert (
                await _sent(s, CHAT, {"messages": USER, "max_tokens": 2}, headers=good)
            ).status_code == 200

    run(start())
