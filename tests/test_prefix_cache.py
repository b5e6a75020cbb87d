"""The prefix cache on OpenVINO, in memory and on disk: texts of the default model with drafts, bit by bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import specport
from specport.pipeline import Pipeline

pytest.importorskip("openvino")
pytestmark = pytest.mark.real_model

SYSTEM = " ".join(f"Rule {i}: answer in one short sentence, and never mention rule {i}." for i in range(12))
QUESTIONS = ("Name three rivers.", "Count from one to nine.", "Name three rivers.")
SAMPLED = {"temperature": 0.8, "top_p": 0.95, "seed": 11}
OPTIONS: tuple[dict[str, Any], ...] = ({}, SAMPLED)


def texts(pipeline: Pipeline) -> tuple[list[list[int]], list[int], list[int]]:
    """Return the texts of all questions, how much of each prompt was known, and how long it was."""
    results = [
        pipeline.generate(
            [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}],
            max_new_tokens=12,
            **options,
        )
        for options in OPTIONS
        for question in QUESTIONS
    ]
    return (
        [result.token_ids for result in results],
        [result.metrics.num_cached_tokens for result in results],
        [result.metrics.num_prompt_tokens for result in results],
    )


def load(where: Path | bool) -> Pipeline:
    """Suffixes and a head on hidden states draft, by a fixed policy: the planner's drafts depend on times."""
    return specport.load(
        device="xeon", policy="fixed", num_draft_tokens=3, prefix_cache=where, prefix_cache_size="200MB"
    )


def test_texts_are_those_without_it_in_memory_and_from_another_process(tmp_path: Path) -> None:
    """Another pipeline stands for another process: it shares nothing with the first but the folder."""
    with load(False) as pipeline:
        plain, cached, _ = texts(pipeline)
        assert not any(cached)
    for known in (False, True):
        with load(tmp_path) as pipeline:
            found, cached, lengths = texts(pipeline)
        assert found == plain
        assert (cached[0] > 100) == known and all(n > 100 for n in cached[1:])
        assert all(length - n <= 64 for length, n in zip(lengths[1:], cached[1:], strict=True))
    assert sum(path.stat().st_size for path in tmp_path.glob("*/*.npy")) <= 200_000_000
