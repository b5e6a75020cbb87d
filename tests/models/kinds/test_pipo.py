"""Folders of pair models: what is read is what was written, and what is damaged is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specport.errors import ModelError
from specport.models.kinds import pipo
from specport.models.kinds.pipo import PairConfig, PairWeights


def weights(width: int = 4, seed: int = 0) -> PairWeights:
    rng = np.random.default_rng(seed)
    sizes = [(width, 2 * width), (width, width), (width,), (2 * width,), (width, 2 * width), (1, width)]
    return PairWeights(*(rng.normal(size=size).astype(np.float32) for size in sizes))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    pipo.write(tmp_path, PairConfig(4, 10, source="m"), weights())
    found = pipo.read(tmp_path)
    assert (found.config.width, found.config.vocab, found.config.threshold) == (4, 10, 0.95)
    np.testing.assert_array_equal(found.weights.judge, weights().judge)
    assert pipo.is_pair_folder(str(tmp_path)) and not pipo.is_pair_folder(str(tmp_path / "x"))
    assert not pipo.is_pair_folder(None)


def test_ids_of_pairs() -> None:
    pairs = pipo.Pairs(PairConfig(4, 10), weights())
    assert pairs.ids([3, 9, 0, 1, 7]) == [3 * 11 + 9, 1, 7 * 11 + 10]  # the last one stands with PAD
    assert pairs.ids([]) == []


def test_the_confidence_by_hand() -> None:
    found = weights(2)
    state, second = np.array([1.0, -2.0], np.float32), np.array([0.5, 3.0], np.float32)
    x = np.array([1.0, -2.0, 0.5, 3.0])
    x = found.judge @ (found.gain * x / np.sqrt((x**2).mean() + 1e-6))
    x = x / (1 + np.exp(-x))
    expected = 1 / (1 + np.exp(-(found.score @ x)[0]))
    assert found.confidence(state, second) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"width": 5},
        {"width": 0},
        {"vocab": 0},
        {"vocab": 1 << 40},
        {"threshold": 2},
        {"format": 2},
        {"vocab": "x"},
    ],
    ids=str,
)
def test_a_damaged_configuration(change: dict[str, Any], tmp_path: Path) -> None:
    pipo.write(tmp_path, PairConfig(4, 10), weights())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ModelError):
        pipo.read(tmp_path)


def test_damaged_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        pipo.read(tmp_path)
    bad = weights()
    bad.pad[0] = np.nan
    pipo.write(tmp_path, PairConfig(4, 10), bad)
    with pytest.raises(ModelError, match="pad are finite"):
        pipo.read(tmp_path)
    (tmp_path / pipo.WEIGHTS).unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        pipo.read(tmp_path)
