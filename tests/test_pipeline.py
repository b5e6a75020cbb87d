"""The Python API on a toy model: texts, batches, streams, chats, and what they leave behind."""

from __future__ import annotations

import gc
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from support.toys import toy_pipeline
from support.toys.toy_model import ToyModel

from specport.core.engine import Engine
from specport.core.policies.drafting import Drafting
from specport.core.policies.first_proposal import FirstProposal
from specport.core.policies.length_rules import (
    Fixed,
)
from specport.core.ports import Drafter, Row, StepOutput
from specport.drafters.model.drafter import ModelDrafter
from specport.drafters.retrieval.ngram import NgramDrafter
from specport.errors import InvalidInput, SpecportError
from specport.pipeline import Pipeline


def engine(toy: ToyModel, *drafters: Drafter) -> Engine:
    return Engine(toy, FirstProposal(drafters, lambda: Fixed(20)) if drafters else None)


@pytest.fixture
def toy() -> ToyModel:
    return ToyModel(max_context=512)


@pytest.fixture
def pipeline(toy: ToyModel) -> Pipeline:
    return Pipeline(engine(toy, NgramDrafter()), toy_pipeline.ToyTokenizer())


def test_text_ids_and_reason_agree(pipeline: Pipeline, toy: ToyModel) -> None:
    result = pipeline.generate("hello", max_new_tokens=30)
    assert result.text == toy_pipeline.greedy("hello", 30)
    assert len(result.token_ids) == result.metrics.num_output_tokens == 30
    assert result.finish_reason == "length"
    assert toy.num_open == 0


def test_messages_and_system(pipeline: Pipeline) -> None:
    said = pipeline.generate([{"role": "system", "content": "x"}, {"role": "user", "content": "hello"}])
    assert said.prompt_token_ids == pipeline.generate("hello", system="x").prompt_token_ids
    assert said.prompt_token_ids != pipeline.generate("hello").prompt_token_ids


def test_four_prompts_at_once_get_the_text_each_gets_alone(pipeline: Pipeline, toy: ToyModel) -> None:
    prompts = ["one", "a longer prompt", "x", "one"]
    for options in ({}, {"temperature": 0.8, "seed": 3}):
        together = [r.text for r in pipeline.generate(prompts, max_new_tokens=20, **options)]
        assert together == [pipeline.generate(p, max_new_tokens=20, **options).text for p in prompts]
    assert toy.num_open == 0


def test_stream_chunks_join_to_the_text(pipeline: Pipeline) -> None:
    stream = pipeline.stream("hello", max_new_tokens=30)
    chunks = list(stream)
    assert len(chunks) > 1
    assert (
        "".join(chunk.text for chunk in chunks)
        == stream.result.text
        == pipeline.generate("hello", max_new_tokens=30).text
    )
    assert all("".join(text for text, _ in chunk.spans) == chunk.text for chunk in chunks)
    assert any(source == "ngram" for chunk in chunks for _, source in chunk.spans)


@pytest.mark.parametrize("drafter", ["none", "ngram", "model"])
def test_stop_strings_end_the_same_text_with_the_same_tokens(drafter: str) -> None:
    toy = ToyModel(max_context=512)
    drafters = {"none": (), "ngram": (NgramDrafter(),), "model": (ModelDrafter(ToyModel(), toy.vocab_size),)}
    pipeline = Pipeline(engine(toy, *drafters[drafter]), toy_pipeline.ToyTokenizer())
    whole = toy_pipeline.greedy("hello", 60)
    stop = whole[21:24]
    result = pipeline.generate("hello", max_new_tokens=60, stop=[stop])
    end = whole.index(stop)
    assert (result.text, result.finish_reason) == (whole[:end], "stop")
    assert len(result.token_ids) == end + len(stop)


def test_cancelled_stream_keeps_its_text(toy: ToyModel, pipeline: Pipeline) -> None:
    stream = pipeline.stream("hello", max_new_tokens=400)
    first = next(stream).text
    stream.cancel()
    rest = "".join(chunk.text for chunk in stream)
    assert stream.result.finish_reason == "cancelled"
    assert stream.result.text == first + rest
    assert toy_pipeline.greedy("hello", 400).startswith(first + rest)
    assert toy.num_open == 0


@pytest.mark.parametrize("read", [0, 1])
def test_dropped_streams_free_their_cache_before_the_next_round(
    read: int, pipeline: Pipeline, toy: ToyModel
) -> None:
    stream = pipeline.stream("hello", max_new_tokens=100)
    for _ in range(read):
        next(stream)
    assert toy.num_open == read  # opened by the first round
    del stream
    gc.collect()
    assert pipeline.generate("x", max_new_tokens=3).text == toy_pipeline.greedy("x", 3)
    assert toy.num_open == 0


def test_a_stream_that_is_dropped_within_a_step_re_enters_nothing() -> None:
    dropped: list[object] = []

    class Collecting(ToyModel):
        """Drops a stream while it steps, as the garbage collector may."""

        stepping = False

        def step(self, rows: Sequence[Row]) -> StepOutput:
            assert not self.stepping
            self.stepping = True
            if dropped:
                dropped.clear()
                gc.collect()
            output = super().step(rows)
            self.stepping = False
            return output

        def close(self, handle: Any) -> None:
            assert not self.stepping
            super().close(handle)

    toy = Collecting(max_context=512)
    pipeline = Pipeline(engine(toy, NgramDrafter()), toy_pipeline.ToyTokenizer())
    dropped.append(pipeline.stream("hello", max_new_tokens=100))
    next(dropped[0])  # type: ignore[call-overload]
    assert pipeline.generate("one", max_new_tokens=20).text == toy_pipeline.greedy("one", 20)
    assert not dropped and toy.num_open == 0


def test_two_streams_interleave(pipeline: Pipeline) -> None:
    streams = [pipeline.stream(p, max_new_tokens=25) for p in ("one", "two")]
    texts = ["", ""]
    for pair in zip(*streams, strict=False):
        for i, chunk in enumerate(pair):
            texts[i] += chunk.text
    for i, prompt in enumerate(("one", "two")):
        texts[i] = streams[i].result.text
        assert texts[i] == toy_pipeline.greedy(prompt, 25)


def test_threads_share_the_steps_of_a_pipeline() -> None:
    rows: list[int] = []

    class Counting(ToyModel):
        def step(self, given: Sequence[Row]) -> StepOutput:
            rows.append(len(given))
            return super().step(given)

    pipeline = Pipeline(Engine(Counting(max_context=512, step_seconds=0.002)), toy_pipeline.ToyTokenizer())
    texts: dict[int, str] = {}

    def work(i: int) -> None:
        texts[i] = pipeline.generate("x" * (i + 1), max_new_tokens=30).text

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [texts[i] for i in range(8)] == [toy_pipeline.greedy("x" * (i + 1), 30) for i in range(8)]
    assert len(rows) < 8 * 30 / 2 and max(rows) > 4


def test_chat_keeps_its_cache_and_says_what_a_fresh_start_would(pipeline: Pipeline, toy: ToyModel) -> None:
    chat = pipeline.chat(max_new_tokens=12)
    first = chat.send("hello").result
    second = chat.send("more").result
    assert [m["role"] for m in chat.messages] == ["user", "assistant", "user", "assistant"]
    assert second.text == pipeline.generate(chat.messages[:3], max_new_tokens=12).text
    # All of the first turn but its last token, which was never an input.
    assert second.metrics.num_cached_tokens == len(first.prompt_token_ids) + len(first.token_ids) - 1
    chat.reset()
    assert chat.send("hello").result.text == first.text
    chat.close()
    assert toy.num_open == 0


def test_chat_goes_on_after_a_stopped_answer(pipeline: Pipeline) -> None:
    chat = pipeline.chat(max_new_tokens=50)
    stream = chat.send("hello")
    next(stream)
    with pytest.raises(InvalidInput, match="still being written"):
        chat.send("more")
    stream.close()
    said = chat.messages[-1]["content"]
    assert toy_pipeline.greedy("hello", 50).startswith(said)
    expected = pipeline.generate([*chat.messages, {"role": "user", "content": "more"}], max_new_tokens=50)
    assert chat.send("more").result.text == expected.text


def test_a_dropped_answer_stays_as_far_as_it_came_and_a_dropped_chat_frees_its_cache(
    pipeline: Pipeline, toy: ToyModel
) -> None:
    chat = pipeline.chat(max_new_tokens=50)
    stream = chat.send("hello")
    next(stream)
    del stream
    gc.collect()
    said = chat.send("more").result.prompt_token_ids
    assert len(said) > len("hello") + len("more")
    assert chat.messages[1]["role"] == "assistant" and chat.messages[1]["content"]
    assert toy.num_open == 1
    del chat
    gc.collect()
    pipeline.engine.tidy()
    assert toy.num_open == 0


def test_a_closed_chat_says_so(pipeline: Pipeline, toy: ToyModel) -> None:
    chat = pipeline.chat(max_new_tokens=5)
    chat.send("hello").result  # noqa: B018
    chat.close()
    chat.close()
    with pytest.raises(InvalidInput, match="closed"):
        chat.send("more")
    assert toy.num_open == 0


def test_a_list_of_conversations_is_a_batch(pipeline: Pipeline) -> None:
    talks = [[{"role": "user", "content": text}] for text in ("one", "two")]
    results = pipeline.generate(talks, max_new_tokens=9)
    assert [r.text for r in results] == [toy_pipeline.greedy(text, 9) for text in ("one", "two")]
    with pytest.raises(InvalidInput, match="list of messages"):
        pipeline.generate(["one", talks[0]], max_new_tokens=9)


def test_none_means_the_default_and_whole_numbers_of_any_kind_are_whole_numbers(pipeline: Pipeline) -> None:
    options = {"stop": None, "temperature": None, "max_new_tokens": np.int64(7), "seed": np.int64(3)}
    assert pipeline.generate("hello", **options).text == toy_pipeline.greedy("hello", 7)


def test_log_probabilities_are_the_targets_own(pipeline: Pipeline, toy: ToyModel) -> None:
    result = pipeline.generate("hello", max_new_tokens=12, logprobs=3)
    plain = Pipeline(Engine(toy), toy_pipeline.ToyTokenizer())
    assert result.logprobs == plain.generate("hello", max_new_tokens=12, logprobs=3).logprobs
    text = [*result.prompt_token_ids, *result.token_ids]
    row = toy.table[text[-3], text[-2]].astype(np.float64)
    last = result.logprobs[-1]
    assert last.logprob == pytest.approx(row[text[-1]] - np.log(np.exp(row).sum()), abs=1e-9)
    assert [token for token, _ in last.top] == np.argsort(-row)[:3].tolist()
    assert pipeline.generate("hello", max_new_tokens=12).logprobs == []


@pytest.mark.parametrize("stop", [(), ("e",), ("zz",)])
def test_log_probabilities_come_with_the_text_and_are_cut_with_it(
    pipeline: Pipeline, stop: tuple[str, ...]
) -> None:
    """One letter a token: the chunks' tokens are the chunks' letters."""
    whole = pipeline.generate("hello", max_new_tokens=30, logprobs=2)
    wanted = toy_pipeline.greedy("hello", 30).partition(stop[0])[0] if stop else whole.text
    stream = pipeline.stream("hello", max_new_tokens=30, logprobs=2, stop=stop)
    chunks = [*stream]
    assert len(chunks) > 1 or not wanted
    for chunk in chunks:
        assert "".join(toy_pipeline.LETTERS[entry.token] for entry in chunk.logprobs) == chunk.text
    assert "".join(chunk.text for chunk in chunks) == stream.result.text == wanted
    assert [entry for chunk in chunks for entry in chunk.logprobs] == stream.result.logprobs
    assert stream.result.logprobs == whole.logprobs[: len(wanted)]


@pytest.mark.parametrize("count", [-1, 21, 1.5, "3", True])
def test_bad_numbers_of_likeliest_tokens_are_refused(pipeline: Pipeline, count: object) -> None:
    with pytest.raises(InvalidInput, match="logprobs"):
        pipeline.generate("hello", logprobs=count)


def test_chat_that_no_longer_fits_is_refused_and_nothing_is_lost(pipeline: Pipeline) -> None:
    chat = pipeline.chat(max_new_tokens=10)
    chat.send("hello").result  # noqa: B018
    before = list(chat.messages)
    with pytest.raises(InvalidInput, match="context"):
        chat.send("x" * 600)
    assert chat.messages == before
    assert chat.send("hi").result.text


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 0},
        {"max_new_tokens": -3},
        {"max_new_tokens": 2.5},
        {"max_new_tokens": True},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_k": -1},
        {"min_p": 1.5},
        {"repetition_penalty": 0},
        {"stop": [""]},
        {"no_such_option": 1},
        {"stop": [1]},
        {"seed": 1.5},
    ],
)
def test_bad_options_are_refused_with_their_name(options: dict[str, object], pipeline: Pipeline) -> None:
    name = next(iter(options)).removesuffix("s") if "stop" in options else next(iter(options))
    with pytest.raises(InvalidInput, match=name):
        pipeline.generate("hello", **options)


@pytest.mark.parametrize("prompt", ["", "  \n", [], "x" * 512, ["fine", ""]])
def test_bad_prompts_are_refused_and_leave_nothing(prompt: str, pipeline: Pipeline, toy: ToyModel) -> None:
    with pytest.raises(InvalidInput):
        pipeline.generate(prompt)
    assert toy.num_open == 0


def test_the_context_limits_the_answer(pipeline: Pipeline) -> None:
    result = pipeline.generate("x" * 500, max_new_tokens=100)
    assert (len(result.token_ids), result.finish_reason) == (12, "length")


def test_bad_drafting_is_refused_before_anything_is_loaded() -> None:
    for wrong in ({"policy": "nonsense"}, {"num_draft_tokens": -1}, {"branches": (2,)}, {"acceptance": "x"}):
        with pytest.raises(SpecportError):
            Drafting(**wrong)  # type: ignore[arg-type]
    Drafting("fixed", 3, (2, 2))


def test_closed_pipeline_says_so(pipeline: Pipeline) -> None:
    with pipeline:
        stream = pipeline.stream("hello", max_new_tokens=5)
    with pytest.raises(InvalidInput, match="closed"):
        pipeline.generate("hello")
    assert stream.result.text == toy_pipeline.greedy("hello", 5)
