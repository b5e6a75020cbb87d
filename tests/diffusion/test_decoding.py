"""Decoding of one text: what is equal to what, token for token, on a toy that is exact."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from support.tiny.tiny_diffusion import TinyTransformer, tiny_diffusion

from specport.core.ports import Block, Row
from specport.core.sampling.params import SamplingParams
from specport.core.sampling.sampler import Sampler
from specport.diffusion.acceptance import discarded
from specport.diffusion.decoding import Decoder, Native, SimSD, Written
from specport.diffusion.options import LAYOUTS, DiffusionOptions, LayoutKind
from specport.diffusion.ports import DiffusionModel
from specport.diffusion.reveal import chosen
from specport.errors import ContextFull, InvalidInput
from specport.models.kinds.diffusion import DiffusionFacts

PROMPT = [1, 5, 3, 7, 2, 9]
LEAK_FREE: tuple[LayoutKind, ...] = ("same-step", "grouped")
TARGET = tiny_diffusion(0)
DRAFTS = {"near": tiny_diffusion(0, noise=0.1), "far": tiny_diffusion(1)}


def greedy() -> Sampler:
    return Sampler(SamplingParams())


def rounds(decoder: Decoder, num_tokens: int = 40) -> list[Written]:
    out: list[Written] = []
    while sum(len(written.tokens) for written in out) < num_tokens:
        out.append(decoder.round(100))
    decoder.close()
    return out


def text(decoder: Decoder, num_tokens: int = 40) -> list[int]:
    return [token for written in rounds(decoder, num_tokens) for token in written.tokens][:num_tokens]


def by_hand(model: DiffusionModel, prompt: Sequence[int], num_tokens: int, context: str) -> list[int]:
    """Native denoising without a cache, written anew: one surest token a step."""
    facts, b = model.facts, model.facts.block_length
    out = [*prompt]
    while len(out) < len(prompt) + num_tokens:
        start = len(out) // b * b
        block = [*out[start:], *[facts.mask_id] * (b - len(out) + start)]
        while facts.mask_id in block:
            tokens = [*out[:start], *block]
            at = np.arange(len(tokens))
            seen = at[None] <= at[:, None] if context == "causal" else at[None] // b <= at[:, None] // b
            seen[start:] = True
            handle = model.model.open()
            step = model.model.step([Row(handle, Block(tuple(tokens), tuple(range(len(tokens))), seen))])
            model.model.close(handle)
            logits = np.array(step.logits)[start:]
            logits[:, facts.mask_id] = -np.inf
            probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            best = max((i for i in range(b) if block[i] == facts.mask_id), key=lambda i: probs[i].max())
            block[best] = int(probs[best].argmax())
        out[start:] = block
    return out[len(prompt) :][:num_tokens]


@pytest.mark.parametrize("length", [6, 8])
@pytest.mark.parametrize("context", ["blocks", "causal"])
def test_native_decoding(context: str, length: int) -> None:
    model = tiny_diffusion(0, context=context)  # type: ignore[arg-type]
    prompt = [*PROMPT, 4, 4][:length]
    expected = by_hand(model, prompt, 20, context)
    assert text(Native(model, prompt, greedy(), DiffusionOptions()), 20) == expected
    assert text(Native(model, prompt, greedy(), DiffusionOptions(), cached=False), 20) == expected
    assert isinstance(model.model, TinyTransformer) and model.model.num_open == 0


def test_the_cache_saves_rows() -> None:
    counts = []
    for cached in (True, False):
        model = tiny_diffusion(0)
        assert isinstance(model.model, TinyTransformer)
        text(Native(model, PROMPT * 10, greedy(), DiffusionOptions(), cached=cached))
        counts.append(model.model.num_rows)
    assert counts[0] * 5 < counts[1]


def test_fewer_steps_and_a_threshold_take_fewer_passes() -> None:
    def passes(options: DiffusionOptions) -> int:
        return sum(written.steps for written in rounds(Native(TARGET, PROMPT[:4], greedy(), options)))

    assert [passes(DiffusionOptions(steps=n)) for n in (4, 2, 1)] == [40, 20, 10]
    assert passes(DiffusionOptions(threshold=0.0001)) == 10 < passes(DiffusionOptions(threshold=0.4)) < 40


def test_positions_that_are_revealed() -> None:
    sure = np.array([0.2, 0.9, 0.5, 0.5, 0.8])
    assert chosen([0, 1, 2, 3, 4], sure, 2) == [1, 2, 4]  # ceil(5 / 2); of equals the first
    assert chosen([0, 2, 3], sure, 3) == [2]
    assert chosen([0, 2, 3], sure, 3, "position") == [0]
    assert chosen([0, 1, 2, 3, 4], sure, 5, threshold=0.7) == [1, 4]
    assert chosen([0, 2], sure, 2, threshold=0.7) == [2]  # none is sure: as without a threshold
    assert chosen([1, 2, 4], sure, 3, "position", 0.7) == [1]  # a sure one behind an unsure one has to wait


@pytest.mark.parametrize("draft", DRAFTS.values(), ids=DRAFTS)
@pytest.mark.parametrize("layout", LEAK_FREE)
@pytest.mark.parametrize("length", [6, 8])
def test_with_a_draft_the_text_is_that_of_the_target_alone(
    layout: LayoutKind, draft: DiffusionModel, length: int
) -> None:
    """greedy_match, by position: token for token what the target writes alone under the same layout."""
    options, prompt = DiffusionOptions(order="position", layout=layout), [*PROMPT, 4, 4][:length]
    alone = rounds(SimSD(TARGET, None, prompt, greedy(), options))
    assert all(len(written.tokens) == 1 for written in alone)
    found = rounds(SimSD(TARGET, draft, prompt, greedy(), options))
    assert [t for w in found for t in w.tokens][:40] == [t for w in alone for t in w.tokens]
    assert sum(written.discarded for written in found) == 0
    assert sum(written.accepted for written in found) > (20 if draft is DRAFTS["near"] else 0)


def test_a_draft_of_fewer_steps_changes_no_text() -> None:
    texts = [
        text(SimSD(TARGET, DRAFTS["near"], PROMPT, greedy(), DiffusionOptions(order="position", steps=steps)))
        for steps in (1, 2, 4)
    ]
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.parametrize("vocab", [16, 28])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_draft_whose_vocabulary_is_padded_otherwise(vocab: int, temperature: float) -> None:
    """The target has 20 logits. Its mask is within both."""
    target = DiffusionModel(TARGET.model, DiffusionFacts(15, 4))
    draft = DiffusionModel(TinyTransformer(vocab=vocab, seed=1, sharpness=6.0), DiffusionFacts(15, 4))
    sampler = Sampler(SamplingParams(temperature=temperature, top_k=4, seed=0))
    found = rounds(SimSD(target, draft, [1, 5, 3], sampler, DiffusionOptions(order="position", steps=2)))
    assert all(0 <= token < min(20, vocab) for written in found for token in written.drafted)
    if not temperature:
        alone = text(SimSD(target, None, [1, 5, 3], greedy(), DiffusionOptions(order="position")))
        assert [t for written in found for t in written.tokens][:40] == alone


def test_a_block_that_no_step_takes_is_refused() -> None:
    options = DiffusionOptions(block_length=12, order="position", layout="grouped")
    decoder = SimSD(TARGET, DRAFTS["near"], PROMPT * 2, greedy(), options)
    with pytest.raises(InvalidInput, match="too wide for a step"):
        decoder.round(100)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_by_confidence_the_text_depends_on_the_draft(layout: LayoutKind) -> None:
    options = DiffusionOptions(order="confidence", layout=layout)
    found = {name: rounds(SimSD(TARGET, draft, PROMPT, greedy(), options)) for name, draft in DRAFTS.items()}
    texts = [[t for w in each for t in w.tokens][:40] for each in found.values()]
    assert texts[0] != texts[1]
    assert all(sum(written.discarded for written in each) > 0 for each in found.values())
    for each in found.values():
        for written in each:  # the block ends behind the first rejected token
            assert len(written.tokens) == min(4, written.accepted + 1)
    assert sum(len(w.tokens) / w.steps for w in found["near"]) / len(found["near"]) > 2


def test_a_perfect_draft_is_accepted_as_a_whole() -> None:
    """Of one layer each: a slot in its group is then the native step, so the target drafts for itself."""
    model = tiny_diffusion(3, layers=1)
    options = DiffusionOptions(order="confidence", layout="grouped")
    found = rounds(SimSD(model, model, PROMPT[:4], greedy(), options))
    assert all(written.accepted == 4 for written in found)
    assert [t for w in found for t in w.tokens] == text(Native(model, PROMPT[:4], greedy(), options))


def test_tokens_that_depend_on_the_draft() -> None:
    assert discarded((0, 1, 2, 3), 0, 2, True) == 0
    # Position 0 was revealed last. Position 1 is corrected: 0 was judged with the draft's 1, 2 and 3.
    assert discarded((3, 0, 1, 2), 0, 2, True) == 1
    assert discarded((3, 0, 1, 2), 0, 4, False) == 0
    assert discarded((1, 3, 0, 2), 0, 2, False) == 2
    assert discarded((1, 3, 0, 2), 1, 2, False) == 1


@pytest.mark.parametrize("order", ["confidence", "position"])
def test_the_end_of_the_context(order: str) -> None:
    target, draft = tiny_diffusion(0, max_context=16), tiny_diffusion(1, max_context=16)
    options = DiffusionOptions(order=order, layout="grouped")  # type: ignore[arg-type]
    for decoder in (
        SimSD(target, draft, PROMPT, greedy(), options),
        Native(target, PROMPT, greedy(), options),
    ):
        count = len(PROMPT)
        while count < 16:
            count += len(decoder.round(16 - count).tokens)
        assert count == 16
        with pytest.raises(ContextFull):
            decoder.round(1)
        decoder.close()
        decoder.close()


def test_a_long_prompt_is_read_in_steps_that_the_model_takes() -> None:
    prompt = (PROMPT * 30)[:170]
    wide = tiny_diffusion(0, widest=256)
    assert text(Native(TARGET, prompt, greedy(), DiffusionOptions())) == text(
        Native(wide, prompt, greedy(), DiffusionOptions())
    )


@pytest.mark.parametrize(("length", "steps"), [(32, 32), (40, 41)])
def test_a_block_that_is_read_by_itself_is_a_step(length: int, steps: int) -> None:
    """Two blocks of 40 do not fit a step of 64; reading the prompt is none of the steps."""
    decoder = Native(tiny_diffusion(0, block_length=length), PROMPT * 20, greedy(), DiffusionOptions())
    first, second = decoder.round(100), decoder.round(100)
    assert (first.steps, second.steps) == (length - 120 % length, steps)
    decoder.close()


@pytest.mark.parametrize("shifted", [False, True])
def test_a_model_that_attends_to_everything(shifted: bool) -> None:
    inner = TinyTransformer(seed=0, widest=256)
    model = DiffusionModel(inner, DiffusionFacts(19, 4, "full", shifted))
    out = [*PROMPT]
    for _ in range(3):
        block = [19] * 4
        while 19 in block:
            n = len(out) + 4
            handle = inner.open()
            seen = np.ones((n, n), dtype=np.bool_)
            step = inner.step([Row(handle, Block((*out, *block), tuple(range(n)), seen))])
            logits = np.array(step.logits)[len(out) - shifted :][:4]
            logits[:, 19] = -np.inf
            probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            best = max((i for i in range(4) if block[i] == 19), key=lambda i: probs[i].max())
            block[best] = int(probs[best].argmax())
        out += block
    # Blocks begin behind the prompt, whose last tokens fill none.
    assert text(Native(model, PROMPT, greedy(), DiffusionOptions()), 12) == out[len(PROMPT) :]
