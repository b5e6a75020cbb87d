"""Diffusion models behind the Python API: streams, stop strings, limits, seeds, and what is refused."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from support.tiny.tiny_diffusion import TinyTransformer, tiny_diffusion
from support.toys.toy_pipeline import ToyTokenizer

from specport.core.sampling.params import SamplingParams
from specport.core.sampling.sampler import Sampler
from specport.core.sequence import Generation
from specport.diffusion.decoding import Native, SimSD
from specport.diffusion.engine import DiffusionEngine
from specport.diffusion.options import DiffusionOptions
from specport.errors import ContextFull, DeviceError, InvalidInput
from specport.explain import explain
from specport.options import GenerationOptions
from specport.pipeline import Pipeline
from specport.text.grammar.grammar import Grammar

PROMPT = "bad cafe"
SIMSD = DiffusionOptions(order="position", layout="grouped")


def pipeline(draft: bool = False, tokenizer: Any = None, **model: Any) -> Pipeline:
    target = tiny_diffusion(2, vocab=12, **model)
    small = tiny_diffusion(2, vocab=12, noise=0.1, **model) if draft else None
    engine = DiffusionEngine(target, SIMSD if draft else DiffusionOptions(), small, "small")
    return Pipeline(engine, tokenizer or ToyTokenizer(), model_name="tiny")


def text(length: int, draft: bool = False, **params: Any) -> str:
    """Return what the decoder itself writes."""
    target, sampler = tiny_diffusion(2, vocab=12), Sampler(SamplingParams(**params))
    ids = ToyTokenizer().encode(PROMPT)
    decoder: Any = Native(target, ids, sampler, DiffusionOptions())
    if draft:
        decoder = SimSD(target, tiny_diffusion(2, vocab=12, noise=0.1), ids, sampler, SIMSD)
    out: list[int] = []
    while len(out) < length:
        out += decoder.round(100).tokens
    return ToyTokenizer().decode(out[:length])


def opened(loaded: Pipeline) -> int:
    model = loaded.engine.model
    assert isinstance(model, TinyTransformer)
    return model.num_open


@pytest.mark.parametrize("draft", [False, True])
def test_a_stream(draft: bool) -> None:
    loaded = pipeline(draft)
    stream = loaded.stream(PROMPT, max_new_tokens=30)
    chunks = list(stream)
    assert "".join(chunk.text for chunk in chunks) == text(30, draft) == stream.result.text
    assert stream.result.finish_reason == "length" and len(stream.result.token_ids) == 30
    assert len(chunks) > 5  # one for each block
    sources = {source for chunk in chunks for _, source in chunk.spans}
    assert sources == ({"", "small"} if draft else {""})
    metrics = stream.result.metrics
    assert metrics.num_prompt_tokens == len(PROMPT) and metrics.num_output_tokens == 30
    if draft:
        assert metrics.num_steps == metrics.num_drafts < 20
        assert 0 < metrics.num_accepted_tokens == metrics.drafting.by["small"].accepted
    else:
        assert metrics.num_steps >= 30 and metrics.num_drafts == 0
    assert opened(loaded) == 0
    assert loaded.draft_name == ("small" if draft else "none")


@pytest.mark.parametrize("draft", [False, True])
def test_an_explanation_speaks_of_denoising(draft: bool) -> None:
    """No step of it is one of plain decoding, so that nothing is compared with that, nor to be calibrated."""
    found = explain(pipeline(draft).generate(PROMPT, max_new_tokens=30).metrics)
    assert found.plain_s is None and "steps of the diffusion model wrote 30 tokens" in found.verdict
    assert "calibrate" not in found.verdict and ("--draft none" in found.verdict) == draft


def test_stop_strings_and_end_tokens() -> None:
    whole = text(40)
    stop = whole[13:15]
    result = pipeline().generate(PROMPT, max_new_tokens=40, stop=(stop,))
    assert result.text == whole[: whole.index(stop)] and result.finish_reason == "stop"

    class Ending(ToyTokenizer):
        eos_ids = frozenset(ToyTokenizer().encode(whole[9]))
        special_ids = eos_ids

    first = whole.index(whole[9])
    result = pipeline(tokenizer=Ending()).generate(PROMPT, max_new_tokens=40)
    assert result.text == whole[:first] and result.finish_reason == "stop"
    assert len(result.token_ids) == first + 1
    ignored = pipeline(tokenizer=Ending()).generate(PROMPT, max_new_tokens=40, ignore_eos=True)
    assert len(ignored.token_ids) == 40


def test_a_seed_gives_the_same_text_each_time() -> None:
    options: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 30}
    for draft in (False, True):
        texts = [pipeline(draft).generate(PROMPT, seed=seed, **options).text for seed in (1, 1, 2)]
        assert texts[0] == texts[1] == text(30, draft, temperature=1.0, seed=1) != texts[2]


def test_texts_of_two_threads() -> None:
    loaded, found = pipeline(draft=True), {}

    def write(prompt: str) -> None:
        found[prompt] = loaded.generate(prompt, max_new_tokens=30).text

    prompts = (PROMPT, "fade", "a big idea")
    alone = {prompt: pipeline(draft=True).generate(prompt, max_new_tokens=30).text for prompt in prompts}
    threads = [threading.Thread(target=write, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone and opened(loaded) == 0
    assert loaded.generate([*prompts], max_new_tokens=30)[1].text == alone["fade"]


def test_a_stream_that_is_left() -> None:
    loaded = pipeline()
    stream = loaded.stream(PROMPT, max_new_tokens=100)
    next(stream)
    assert opened(loaded) == 1
    stream.cancel()
    assert stream.result.finish_reason == "cancelled" and 0 < len(stream.result.token_ids) < 100
    assert opened(loaded) == 0
    dropped = loaded.stream(PROMPT, max_new_tokens=100)
    next(dropped)
    del dropped
    loaded.engine.tidy()
    assert opened(loaded) == 0


def test_a_text_that_was_cancelled_says_so() -> None:
    loaded = pipeline()
    request = loaded.request(PROMPT, GenerationOptions())
    generation = loaded.begin(request, loaded.text_of(request))
    loaded.engine.add(generation)
    loaded.engine.step()
    loaded.engine.cancel(generation)
    assert loaded.engine.num_unfinished == 1
    assert loaded.engine.step() == []
    assert generation.finish_reason == "cancelled" and loaded.engine.num_unfinished == 0


def test_an_interrupted_round_is_taken_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = pipeline()
    stream = loaded.stream(PROMPT, max_new_tokens=24)
    next(stream)
    model = loaded.engine.model
    other = loaded.stream("fade", max_new_tokens=8)

    def interrupted(rows: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(model, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(other)
    assert stream.result.text == text(24)
    loaded.engine.tidy()
    assert opened(loaded) == 0


def test_the_end_of_the_context() -> None:
    result = pipeline(max_context=20).generate(PROMPT, max_new_tokens=100)
    assert len(result.token_ids) == 12 and result.finish_reason == "length"
    loaded = pipeline(max_context=20)
    request = loaded.request(PROMPT, GenerationOptions())
    generation = loaded.begin(request, loaded.text_of(request))
    generation.max_new_tokens = 100  # more than the pipeline would ask for
    list(loaded.engine.run([generation]))
    assert generation.finish_reason == "length" and generation.num_output_tokens == 12
    assert opened(loaded) == 0 and loaded.engine.num_unfinished == 0


def test_texts_without_room_end_and_others_go_on() -> None:
    """None waits for a room that no other text will give back."""
    loaded = pipeline(max_context=20)
    long = [Generation([1] * 20, SamplingParams(), 8) for _ in range(2)]
    short = Generation(ToyTokenizer().encode(PROMPT), SamplingParams(), 12)
    for generation in (*long, short):
        loaded.engine.add(generation)
    for _ in range(20):
        loaded.engine.step()
    assert loaded.engine.num_unfinished == 0 and opened(loaded) == 0
    assert [type(g.inbox[-1].fault) for g in long] == [ContextFull, ContextFull]
    assert short.finish_reason == "length" and short.num_output_tokens == 12
    with pytest.raises(ContextFull):
        list(loaded.engine.run([Generation([1] * 20, SamplingParams(), 8)]))


def test_a_text_waits_for_room_without_being_read_again() -> None:
    target = tiny_diffusion(2, vocab=12)
    begun: list[int] = []

    class Alone(Native):  # of which the memory holds one
        def round(self, room: int) -> Any:
            assert isinstance(target.model, TinyTransformer)
            if target.model.num_open and self._context.num_steps == 0:
                raise ContextFull("no room")
            return super().round(room)

    def start(prompt: Any, sampler: Sampler) -> Native:
        begun.append(len(prompt))
        return Alone(target, prompt, sampler, DiffusionOptions())

    engine = DiffusionEngine(target, DiffusionOptions(), start=start)
    prompts = [ToyTokenizer().encode(prompt) for prompt in (PROMPT, "fade")]
    both = [Generation(prompt, SamplingParams(), 24) for prompt in prompts]
    assert len(list(engine.run(both))) > 10
    assert [g.num_output_tokens for g in both] == [24, 24]
    assert begun == [len(PROMPT), 4, 4]  # the second one when it came, and when the first had ended


def test_a_seed_survives_an_interrupted_round(monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"temperature": 1.0, "seed": 1, "max_new_tokens": 24}
    loaded = pipeline(draft=True)
    stream = loaded.stream(PROMPT, **options)
    next(stream)

    def interrupted(rows: Any) -> Any:  # the draft has drawn its tokens by then
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loaded.engine.model, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            loaded.engine.step()
    assert stream.result.text == text(24, draft=True, temperature=1.0, seed=1)


def test_weights_are_not_replaced() -> None:
    """The next step that is named is one that helps: another device does not."""
    with pytest.raises(DeviceError) as caught:
        pipeline().update_weights({})
    assert "diffusion model" in str(caught.value) and caught.value.hint == "load it again"


def test_a_chat() -> None:
    loaded = pipeline()
    chat = loaded.chat(max_new_tokens=8)
    first = chat.send("bad").result.text
    second = chat.send("cafe").result
    assert [message["content"] for message in chat.messages] == ["bad", first, "cafe", second.text]
    chat.close()
    assert opened(loaded) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"repetition_penalty": 1.2}, "penalties"),
        ({"logit_bias": ((1, 5.0),)}, "logit bias"),
        ({"min_new_tokens": 3}, "least length"),
        ({"logprobs": 2}, "log-probabilities"),
        ({"grammar": Grammar.regex("a+")}, "grammar"),
    ],
)
def test_what_is_refused(options: dict[str, Any], words: str) -> None:
    class Ending(ToyTokenizer):  # a least length needs an end
        eos_ids = frozenset([3])

    with pytest.raises(InvalidInput, match=words):
        pipeline(tokenizer=Ending()).stream(PROMPT, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0}, {"block_length": -1}, {"threshold": 1.0}, {"threshold": 0.0}, {"order": "random"},
        {"layout": "leaky"}, {"steps": 1.5},
    ],
)  # fmt: skip
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(options))):
        DiffusionOptions(**options)
