"""The likeliest tokens, against a full sort, in every array library."""

from __future__ import annotations

import array_api_strict
import numpy as np
import pytest

from specport.core.sampling.topk import largest

SCORES = np.random.default_rng(3).normal(size=(5, 9001)).astype(np.float32)


@pytest.mark.parametrize("vocab", [9001, 8192, 700, 9])  # with an odd end, without, too few for blocks
@pytest.mark.parametrize("k", [1, 8])
def test_they_are_those_of_a_full_sort(vocab: int, k: int) -> None:
    scores = SCORES[:, :vocab]
    expected = np.argsort(-scores, axis=1)[:, :k]
    np.testing.assert_array_equal(largest(scores, k), expected)
    np.testing.assert_array_equal(largest(array_api_strict.asarray(scores.copy()), k), expected)


def test_the_end_behind_the_last_block_counts() -> None:
    scores = SCORES.copy()
    scores[:, -1] = 50.0
    assert (largest(scores, 3)[:, 0] == 9000).all()


def test_no_more_than_there_are() -> None:
    assert largest(SCORES[:, :3], 8).shape == (5, 3)


def test_half_precision_of_torch() -> None:
    torch = pytest.importorskip("torch")
    scores = torch.tensor([[0.0, 3.0, 1.0, 2.0]], dtype=torch.bfloat16)
    assert largest(scores, 3).tolist() == [[1, 3, 2]]
