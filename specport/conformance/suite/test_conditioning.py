"""Conditioning: an encoder's output that a sequence is opened with is taken or refused, never ignored."""

from __future__ import annotations

import numpy as np
import pytest

from specport.conformance.pair import Pair
from specport.conformance.steps import Array, Probe
from specport.core.ports import Model

FRAMES = 8


@pytest.fixture(scope="module")
def encoded(pair: Pair) -> list[np.ndarray]:
    """Two different encoder outputs, [frames, width]."""
    width = int(pair.config.get("d_model") or pair.config["hidden_size"])
    return [np.random.default_rng(seed).normal(size=(FRAMES, width)).astype(np.float32) for seed in (0, 1)]


@pytest.mark.needs(conditioning=False)
def test_a_model_that_takes_none_says_so(
    model: Model, probe: Probe, ids: list[int], whole: Array, encoded: list[np.ndarray]
) -> None:
    """A text that ignores what it was to describe would be worse than an error."""
    before = model.room()
    for _ in range(3):
        with pytest.raises(ValueError, match=r"\w"):
            model.open(conditioning=encoded[0])
        with pytest.raises(ValueError, match=r"\w"):
            model.open(8, conditioning=encoded[0])
    assert model.room() == before
    handle = model.open(conditioning=None)
    probe.check(probe.feed(handle, [ids[:5]]), whole[:5])
    model.close(handle)


@pytest.mark.needs("conditioning")
def test_a_model_that_takes_it_attends_to_it(
    model: Model, probe: Probe, ids: list[int], encoded: list[np.ndarray]
) -> None:
    """Each sequence has its own, also in a fork of it."""
    handles = [model.open(conditioning=each) for each in (*encoded, encoded[0])]
    first, second, again = (probe.feed(handle, [ids[:5]]) for handle in handles)
    assert np.abs(first - second).max() > 0
    probe.check(again, first)
    expected = probe.feed(handles[0], [ids[5:8]])
    fork = model.fork(handles[2], 5)
    probe.check(probe.feed(fork, [ids[5:8]]), expected)
    for handle in (*handles, fork):
        model.close(handle)
