"""Whisper's encoder and decoder on each runtime, against transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.tiny import tiny_whisper
from transformers import WhisperForConditionalGeneration

from specport.core.arrays import to_host
from specport.core.ports import Block, Model, Row
from specport.core.tree import TokenTree
from specport.models.source import ModelFiles
from specport.runtime.devices.registry import Loaded

IDS = [290, 17, 200, 3, 77, 77, 140, 9, 250, 61, 12, 45]


@pytest.fixture(scope="module")
def heard(loaded: tuple[ModelFiles, Loaded]) -> list[np.ndarray]:
    speech = loaded[1].speech
    assert speech is not None
    return [speech.encode(tiny_whisper.features(seed)) for seed in (0, 1)]


@pytest.fixture(scope="module")
def expected(models) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """States, logits for each window, and the weights of cross-attention [layers, heads, ids, frames]."""
    model = WhisperForConditionalGeneration.from_pretrained(models.target, attn_implementation="eager").eval()
    states, logits = [], []
    with torch.no_grad():
        for seed in (0, 1):
            features = torch.from_numpy(tiny_whisper.features(seed))[None]
            output = model(
                input_features=features, decoder_input_ids=torch.tensor([IDS]), output_attentions=True
            )
            states.append(output.encoder_last_hidden_state[0].numpy())
            logits.append(output.logits[0].numpy())
            if not seed:
                weights = np.stack([layer[0].numpy() for layer in output.cross_attentions])
    return states, logits, weights


def feed(model: Model, handle: object, chunks: list[list[int]]) -> np.ndarray:
    rows = []
    for chunk in chunks:
        output = model.step([Row(handle, Block.chain(chunk))])
        rows.append(to_host(output.logits).copy())
        model.commit(handle, range(len(chunk)))
    return np.concatenate(rows)


def test_states_and_logits_are_those_of_transformers(loaded, heard, expected) -> None:
    model = loaded[1].model
    for states, found, logits in zip(expected[0], heard, expected[1], strict=True):
        np.testing.assert_allclose(found, states, atol=2e-4)
        handle = model.open(len(IDS), found)
        np.testing.assert_allclose(feed(model, handle, [IDS]), logits, atol=2e-3)
        model.close(handle)
    assert np.abs(expected[1][0] - expected[1][1]).max() > 0.1  # what is heard decides


def test_logits_do_not_depend_on_the_split(loaded, heard) -> None:
    """Chunks, single tokens, a rejected branch, a crop, a fork and another window beside: the same bits."""
    model = loaded[1].model
    assert model.capabilities.exact and model.capabilities.conditioning
    first, second = (model.open(0, states) for states in heard)
    whole = feed(model, first, [IDS])
    model.truncate(first, 3)
    assert np.array_equal(feed(model, first, [IDS[3:4], IDS[4:9], IDS[9:]]), whole[3:])
    other = feed(model, second, [IDS])
    model.truncate(first, 4)
    model.truncate(second, 6)
    output = model.step([Row(second, Block.chain(IDS[6:])), Row(first, Block.chain(IDS[4:7]))])
    assert np.array_equal(to_host(output.logits_of(0)), other[6:])
    assert np.array_equal(to_host(output.logits_of(1)), whole[4:7])
    model.commit(first, [0])
    model.commit(second, range(len(IDS) - 6))
    if model.capabilities.tree:
        tree = TokenTree((IDS[5], 8, IDS[6]), (-1, -1, 0))
        found = to_host(model.step([Row(first, tree.as_block())]).logits).copy()
        assert np.array_equal(found[[0, 2]], whole[5:7])
        model.commit(first, [0, 2])
    else:
        feed(model, first, [IDS[5:7]])
    fork = model.fork(first, 5)
    assert np.array_equal(feed(model, fork, [IDS[5:]]), whole[5:])
    model.close(second)  # its window's place is taken by another's
    assert np.array_equal(feed(model, first, [IDS[7:]]), whole[7:])
    model.close(first)
    again = model.open(0, heard[1])
    assert np.array_equal(feed(model, again, [IDS]), other)
    assert np.array_equal(feed(model, fork, [IDS[:1]]).shape, (1, model.vocab_size))
    for handle in (again, fork):
        model.close(handle)


def test_conditioning_is_checked(loaded, heard) -> None:
    model = loaded[1].model
    room = model.room()
    for wrong in (None, heard[0][:-1], heard[0][:, :-1]):
        with pytest.raises(ValueError, match="encoder's output"):
            model.open(4, wrong)
    assert model.room() == room


def test_cross_attention_is_that_of_transformers(loaded, heard, expected) -> None:
    heads = [(0, 1), (1, 0)]
    found = loaded[1].speech.attention(heard[0], IDS, heads)
    assert found.shape == (2, len(IDS), tiny_whisper.FRAMES)
    np.testing.assert_allclose(found, np.stack([expected[2][pair] for pair in heads]), atol=1e-3)
