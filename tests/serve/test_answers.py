"""What the server answers is what the library answers: texts, streams, several choices, usage."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from support.processes.own_cache import own_cache  # noqa: F401
from support.processes.served import NAME, Served, events, load_tiny, run, served, toy
from support.toys.toy_pipeline import greedy

from specport.pipeline import Pipeline
from specport.serve.settings import Sampling

PROMPTS = ["hello world", "12 12 12", "What is it?", "abc", "hello hello", "x", "low word", "\n\nworld 12"]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    with load_tiny(tmp_path_factory.mktemp("tiny")) as loaded:
        yield loaded


def text(reply: dict[str, Any], index: int = 0) -> str:
    choice = reply["choices"][index]
    assert choice["index"] == index
    return choice["message"]["content"] if "message" in choice else choice["text"]


def streamed(found: list[dict[str, Any]], index: int = 0) -> tuple[str, str]:
    """Return the text of a choice of a stream and its finish reason, which comes once and last."""
    chunks = [each for e in found for each in e["choices"] if each["index"] == index]
    pieces = [c["delta"].get("content", "") if "delta" in c else c["text"] for c in chunks]
    reasons = [c["finish_reason"] for c in chunks]
    assert reasons[-1] and not any(reasons[:-1])
    return "".join(pieces), reasons[-1]


def speculation(found: list[dict[str, Any]], index: int = 0) -> tuple[list[Any], list[Any]]:
    """Return the pieces and the verify steps of a choice of a stream."""
    told = [
        c["speculation"] for e in found for c in e["choices"] if c["index"] == index and "speculation" in c
    ]
    return [p for t in told for p in t["pieces"]], [s for t in told for s in t["steps"]]


def test_greedy_texts_are_those_of_the_library(pipeline: Pipeline) -> None:
    async def ask(s: Served) -> None:
        for prompt in PROMPTS:
            wanted = pipeline.generate(prompt, max_new_tokens=48)
            reply = (await s.chat(prompt, max_tokens=48)).json()
            assert text(reply) == wanted.text
            assert reply["choices"][0]["finish_reason"] == wanted.finish_reason
            usage = reply["usage"]
            assert usage.pop("prompt_tokens_details")["cached_tokens"] < len(wanted.prompt_token_ids)
            assert usage == {
                "prompt_tokens": len(wanted.prompt_token_ids), "completion_tokens": len(wanted.token_ids),
                "total_tokens": len(wanted.prompt_token_ids) + len(wanted.token_ids),
            }  # fmt: skip
            found = events(await s.chat(prompt, max_completion_tokens=48, stream=True))
            assert streamed(found) == (wanted.text, wanted.finish_reason)
            raw = pipeline.generate(prompt, raw=True, max_new_tokens=20)
            for given in (prompt, raw.prompt_token_ids):
                assert text((await s.complete(given, max_tokens=20)).json()) == raw.text
        assert pipeline.engine.num_unfinished == 0

    async def start() -> None:
        async with served(pipeline) as s:
            await ask(s)

    run(start())


def test_eight_clients_at_once_get_the_texts_that_they_get_alone(pipeline: Pipeline) -> None:
    alone = [pipeline.generate(prompt, max_new_tokens=64).text for prompt in PROMPTS]

    async def start() -> None:
        async with served(pipeline) as s:
            plain = [s.chat(p, max_tokens=64, speculative={"draft": "none"} if i % 3 else None)
                     for i, p in enumerate(PROMPTS)]  # fmt: skip
            streams = [s.chat(p, max_tokens=64, stream=True) for p in PROMPTS]
            replies = await asyncio.gather(*plain, *streams)
            assert [text(r.json()) for r in replies[:8]] == alone
            assert [streamed(events(r))[0] for r in replies[8:]] == alone
            await s.idle()

    run(start())


def test_several_prompts_and_choices_keep_their_numbers(pipeline: Pipeline) -> None:
    async def start() -> None:
        async with served(pipeline) as s:
            fields = {"max_tokens": 12, "n": 2, "temperature": 0.9, "seed": 5}
            reply = (await s.complete(["hello world", "12 12"], **fields)).json()
            for index, (prompt, seed) in enumerate(
                [("hello world", 5), ("hello world", 6), ("12 12", 7), ("12 12", 8)]
            ):
                wanted = pipeline.generate(prompt, raw=True, temperature=0.9, seed=seed, max_new_tokens=12)
                assert text(reply, index) == wanted.text
            assert reply["usage"]["prompt_tokens"] == sum(
                len(pipeline.tokenizer.encode(p)) for p in ("hello world", "12 12")
            )
            assert reply["metrics"] is None
            found = events(await s.complete(["hello world", "12 12"], **fields, stream=True))
            assert [streamed(found, i)[0] for i in range(4)] == [text(reply, i) for i in range(4)]
            assert len({text(reply, i) for i in range(4)}) == 4

    run(start())


def test_a_stream_has_a_role_first_and_usage_last_where_asked_for(pipeline: Pipeline) -> None:
    async def start() -> None:
        async with served(pipeline) as s:
            bare = events(await s.chat("hello world", max_tokens=8, stream=True))
            assert all("usage" not in e for e in bare) and all(e["choices"] for e in bare)
            assert bare[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
            assert {e["object"] for e in bare} == {"chat.completion.chunk"}
            assert len({e["id"] for e in bare}) == 1 and {e["model"] for e in bare} == {NAME}
            options = {"include_usage": True}
            full = events(await s.chat("hello world", max_tokens=8, stream=True, stream_options=options))
            assert all(e["usage"] is None for e in full[:-1]) and full[-1]["choices"] == []
            options["continuous_usage_stats"] = True
            each = events(await s.chat("hello world", max_tokens=8, stream=True, stream_options=options))
            counts = [e["usage"]["completion_tokens"] for e in each]
            assert counts == sorted(counts) and counts[0] < counts[-1] == 8
            assert each[-1]["usage"]["total_tokens"] == full[-1]["usage"]["total_tokens"]
            whole = (await s.chat("hello world", max_tokens=8)).json()
            assert full[-1]["usage"]["total_tokens"] == whole["usage"]["total_tokens"]
            assert full[-1]["metrics"]["speculative_decoding"] == whole["metrics"]["speculative_decoding"]

    run(start())


def test_speculation_is_told_and_can_be_switched_off(pipeline: Pipeline) -> None:
    async def start() -> None:
        async with served(pipeline) as s:
            with_drafts = (await s.chat("hello world", max_tokens=40, ignore_eos=True)).json()
            told = with_drafts["metrics"]["speculative_decoding"]
            found = pipeline.generate("hello world", max_new_tokens=40, ignore_eos=True).metrics
            assert told["num_spec_steps"] == found.num_drafts == sum(told["acceptance_histogram"])
            assert told["num_draft_tokens"] == found.num_draft_tokens
            assert told["num_accepted_draft_tokens"] == found.num_accepted_tokens > 0
            counts = told["acceptance_histogram"]
            assert sum(i * n for i, n in enumerate(counts)) == found.num_accepted_tokens
            lengths = told["draft_length_histogram"]
            assert sum(i * n for i, n in enumerate(lengths)) == found.num_draft_tokens  # chains
            assert len(lengths) == told["num_spec_tokens"] + 1 == 4
            one = {"num_draft_tokens": 1}
            shorter = (await s.chat("hello world", max_tokens=40, ignore_eos=True, speculative=one)).json()
            assert shorter["metrics"]["speculative_decoding"]["num_spec_tokens"] == 1
            off = {"draft": "none"}
            without = (await s.chat("hello world", max_tokens=40, ignore_eos=True, speculative=off)).json()
            assert without["metrics"]["speculative_decoding"] is None
            assert text(without) == text(shorter) == text(with_drafts)
            assert without["metrics"]["time_to_first_token_ms"] > 0

    run(start())


def test_a_stream_tells_who_proposed_each_piece_where_asked_for(pipeline: Pipeline) -> None:
    async def start() -> None:
        async with served(pipeline) as s:
            fields = {"max_tokens": 40, "ignore_eos": True, "stream": True}
            told = {**fields, "stream_options": {"include_speculation": True, "include_usage": True}}
            found = events(await s.chat("hello world", **told))
            pieces, steps = speculation(found)
            assert "".join(p["text"] for p in pieces) == streamed(found)[0]
            metrics = pipeline.generate("hello world", max_new_tokens=40, ignore_eos=True).metrics
            assert {p["drafter"] for p in pieces} == {None, *metrics.accepted_by}
            for name in ("drafted", "accepted"):
                total = sum((Counter(step[name]) for step in steps), Counter())
                assert total == Counter(vars(metrics)[f"{name}_by"]) and total
            assert len(steps) == metrics.num_steps
            # Calls aside, one token comes from the prompt, and each step adds one of the target's own.
            assert 1 + sum(1 + sum(step["accepted"].values()) for step in steps) >= 40
            plain = events(await s.chat("hello world", **told, speculative={"draft": "none"}))
            pieces, steps = speculation(plain)
            assert streamed(plain) == streamed(found)
            assert {p["drafter"] for p in pieces} == {None}
            assert steps == [{"drafted": {}, "accepted": {}}] * 39
            two = events(await s.complete("hello world", **told, n=2))
            for index in range(2):
                assert "".join(p["text"] for p in speculation(two, index)[0]) == streamed(two, index)[0]
            for options in ({}, {"stream_options": {"include_speculation": False}}):
                assert '"speculation"' not in (await s.chat("hello world", **fields, **options)).text

    run(start())


def test_stop_strings_and_parts_of_messages() -> None:
    async def start() -> None:
        async with served(toy()) as s:
            whole = greedy("abc", 60)
            stop = whole[20:23]
            cut = whole[: whole.index(stop)]
            for stops in (stop, ["zz", stop]):
                reply = (await s.chat("abc", max_tokens=60, stop=stops)).json()
                assert (text(reply), reply["choices"][0]["finish_reason"]) == (cut, "stop")
                assert streamed(events(await s.chat("abc", max_tokens=60, stop=stops, stream=True))) == (
                    cut,
                    "stop",
                )
            parts = [{"type": "text", "text": "ab"}, {"type": "text", "text": "c"}]
            messages = [
                {"role": "developer", "content": "de"},
                {"role": "user", "content": parts, "name": "x"},
            ]
            body = {"messages": messages, "temperature": 0, "max_tokens": 9}
            reply = (await s.post("/v1/chat/completions", body)).json()
            assert text(reply) == greedy("deab\nc", 9)

    run(start())


def test_requests_that_do_not_say_how_sample_as_the_server_was_told() -> None:
    async def start() -> None:
        pipeline = toy(sharpness=0.3)
        body = {"prompt": "abc", "max_tokens": 40}
        async with served(pipeline) as s:
            texts = {text((await s.post("/v1/completions", body)).json()) for _ in range(3)}
            assert len(texts) == 3  # OpenAI's default is temperature 1
            reply = (await s.post("/v1/completions", {"prompt": "abc", "temperature": 0})).json()
            assert reply["usage"]["completion_tokens"] == 16  # OpenAI's default, too
        async with served(pipeline, sampling=Sampling(temperature=0.0)) as s:
            texts = {text((await s.post("/v1/completions", body)).json()) for _ in range(3)}
            assert len(texts) == 1

    run(start())


def test_an_answer_without_a_limit_ends_with_the_context() -> None:
    async def start() -> None:
        async with served(toy(max_context=100)) as s:
            reply = (await s.chat("abc")).json()
            assert reply["usage"]["total_tokens"] == 100
            assert reply["choices"][0]["finish_reason"] == "length"

    run(start())


def test_models_and_health() -> None:
    async def start() -> None:
        async with served(toy(step_seconds=0.1), ready=False) as s:
            health = await s.client.get("/health")
            assert (health.status_code, health.json()["status"]) == (503, "warming up")
            early = await s.chat("abc")
            assert early.status_code == 503 and int(early.headers["retry-after"]) > 0
            await s.service.ready()
            assert (await s.client.get("/health")).json() == {"status": "ready", "model": NAME}
            assert (await s.client.head("/health")).status_code == 200
            (card,) = (await s.client.get("/v1/models")).json()["data"]
            assert card["id"] == NAME and card["max_model_len"] == 4096
            assert (await s.client.get(f"/v1/models/{NAME}")).json() == card
            missing = await s.client.get("/v1/models/a/b")
            assert missing.status_code == 404 and missing.json()["error"]["code"] == "model_not_found"

    run(start())


def test_replies_are_json_in_utf_8(pipeline: Pipeline) -> None:
    async def start() -> None:
        async with served(pipeline) as s:
            reply = await s.chat("hello world", max_tokens=48)
            assert json.loads(reply.content.decode("utf-8")) == reply.json()
            assert int(reply.headers["content-length"]) == len(reply.content)

    run(start())
