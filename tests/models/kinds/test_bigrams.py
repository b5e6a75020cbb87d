"""Pairs of tokens that rank a parallel draft: what is read back, and files that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specport.errors import ModelError
from specport.models.kinds import bigrams
from specport.models.kinds.bigrams import FILE, PAIR, Bigrams
from specport.models.kinds.parallel import Parallel


def pairs(*rows: tuple[int, int, float]) -> np.ndarray:
    return np.array([*rows], dtype=PAIR)


GOOD = pairs((2, 5, 1.0), (2, 9, 0.5), (7, 0, 3.0))


def test_what_stands_behind_a_token(tmp_path: Path) -> None:
    bigrams.write(tmp_path, Bigrams(GOOD))
    found = bigrams.read(tmp_path)
    tokens, gains = found.behind(2)
    assert (tokens.tolist(), gains.tolist()) == ([5, 9], [1.0, 0.5])
    assert found.behind(7)[0].tolist() == [0]
    assert not found.behind(3)[0].size and not found.behind(100)[0].size
    assert not Bigrams(pairs()).behind(0)[0].size
    assert bigrams.of(None, tmp_path) is None and bigrams.of(Parallel(2, 9, (1.0, 1.0)), tmp_path) is None
    assert bigrams.of(Parallel(2, 9, (1.0, 1.0), True), tmp_path) is not None


@pytest.mark.parametrize(
    "wrong",
    [
        pairs((2, 5, 1.0), (1, 9, 0.5)), pairs((2, 5, 1.0), (2, 5, 0.5)), pairs((-1, 5, 1.0)),
        pairs((1, -5, 1.0)), pairs((1, 5, np.nan)), pairs((1, 5, np.inf)), pairs((1, 5, 1e4)),
        np.zeros((2, 2), dtype=PAIR), np.zeros(4), np.array([{"a": 1}], dtype=object), b"", b"\x93NUMPY",
        b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }",
    ],
    ids=range(13),
)  # fmt: skip
def test_a_file_with_nonsense_is_refused(wrong: Any, tmp_path: Path) -> None:
    if isinstance(wrong, bytes):
        (tmp_path / FILE).write_bytes(wrong)
    else:
        np.save(tmp_path / FILE, wrong, allow_pickle=True)
    with pytest.raises(ModelError, match=r"damaged|cannot read") as caught:
        bigrams.read(tmp_path)
    assert "quantize" in str(caught.value.hint)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot read"):
        bigrams.read(tmp_path)
    bigrams.copy(tmp_path, tmp_path / "other")  # nothing to copy
