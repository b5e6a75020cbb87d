"""Joining and leaving: sequences share an engine's steps for a while, and write what they write alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from specport.conformance.pair import DRAFTERS, Pair, policy
from specport.conformance.steps import Array, Probe
from specport.core.engine import Engine
from specport.core.ports import Block, CacheHandle, Model, Row
from specport.core.sampling.params import SamplingParams
from specport.core.sequence import Generation

LENGTHS = (24, 9, 40, 5, 31, 16)  # tokens that each text may have: they end at different rounds


@pytest.fixture(scope="module")
def prompts(ids: list[int]) -> list[list[int]]:
    """Long ones among them, which are read in several rounds while others decode."""
    return [ids[:9], ids[50:62] * 4, ids[200:600], ids[80:81], ids[300:331], ids[10:160]]


@pytest.fixture(scope="module")
def alone(model: Model, prompts: list[list[int]]) -> dict[bool, list[list[int]]]:
    """Whether texts are drawn -> what each prompt gives when nothing else runs, without drafts."""
    return {
        drawn: [run_alone(model, generation) for generation in _texts(prompts, drawn)]
        for drawn in (False, True)
    }


def run_alone(model: Model, generation: Generation) -> list[int]:
    for _ in Engine(model).run([generation]):
        pass
    return generation.tokens


def _texts(prompts: Sequence[list[int]], drawn: bool) -> list[Generation]:
    """Return a generation for each prompt, greedy or with a seed of its own."""
    return [
        Generation(prompt[:], SamplingParams(temperature=0.8, seed=i) if drawn else SamplingParams(), length)
        for i, (prompt, length) in enumerate(zip(prompts, LENGTHS, strict=True))
    ]


@pytest.mark.needs("exact")
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("drawn", [False, True], ids=["greedy", "drawn"])
def test_texts_that_join_at_different_rounds(
    model: Model, prompts: list[list[int]], alone: dict[bool, list[list[int]]], drawn: bool, every: int
) -> None:
    engine, texts = Engine(model), _texts(prompts, drawn)
    for generation in texts:
        engine.add(generation)
        for _ in range(every):
            engine.step()
    while engine.num_unfinished:
        engine.step()
    assert [generation.tokens for generation in texts] == alone[drawn]


@pytest.mark.needs("exact")
@pytest.mark.parametrize("name", DRAFTERS)
def test_drafted_texts_that_join(
    pair: Pair, prompts: list[list[int]], alone: dict[bool, list[list[int]]], name: str
) -> None:
    """Their trees share steps with prompts that are still read."""
    engine, texts = Engine(pair.target.model, policy(pair, name)), _texts(prompts, drawn=False)
    for generation in texts:
        engine.add(generation)
        engine.step()
    while engine.num_unfinished:
        engine.step()
    assert [generation.tokens for generation in texts] == alone[False]


@pytest.mark.needs("exact")
def test_texts_that_leave_in_the_middle(
    model: Model, prompts: list[list[int]], alone: dict[bool, list[list[int]]]
) -> None:
    """Cancelled while decoding, while reading its prompt, and before its first round."""
    engine, texts = Engine(model), _texts(prompts, drawn=False)
    for generation in texts[:3]:
        engine.add(generation)
    engine.step()
    engine.cancel(texts[2])  # 400 tokens are read in chunks: it is in the middle of them
    engine.add(texts[3])
    engine.cancel(texts[3])
    engine.step()
    engine.cancel(texts[0])
    for generation in texts[4:]:
        engine.add(generation)
    while engine.num_unfinished:
        engine.step()
    for i, (generation, expected) in enumerate(zip(texts, alone[False], strict=True)):
        if i in (0, 2, 3):
            assert generation.finish_reason == "cancelled"
            assert generation.tokens == expected[: len(generation.tokens)]
        else:
            assert generation.tokens == expected


@pytest.mark.needs("batch")
def test_rows_that_join_and_leave(model: Model, probe: Probe, ids: list[int], whole: Array) -> None:
    """Below the engine, also for devices that are not exact: each step has other rows, in another order."""
    rng = np.random.default_rng(5)
    running: list[CacheHandle] = []
    for _ in range(25):
        if len(running) < 2 or (len(running) < 5 and rng.random() < 0.5):
            running.append(probe.opened(ids[: int(rng.integers(0, 70))]))
        elif rng.random() < 0.5:
            model.close(running.pop(int(rng.integers(len(running)))))
        chosen = [handle for handle in running if rng.random() < 0.8] or running
        rows = [
            Row(handle, Block.chain(ids[handle.length : handle.length + int(rng.integers(1, 6))]))
            for handle in chosen
        ]
        rows = [rows[i] for i in rng.permutation(len(rows))]
        for row, logits in zip(rows, probe.step(*rows), strict=True):
            start = row.handle.length
            probe.check(logits, whole[start : start + len(logits)])
            model.commit(row.handle, range(len(logits)))
        for handle in [handle for handle in running if handle.length > 150]:
            running.remove(handle)
            model.close(handle)
    for handle in running:
        model.close(handle)
