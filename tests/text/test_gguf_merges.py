"""Merges made from the scores of a SentencePiece vocabulary do not grow with the square of the file."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

pytest.importorskip("tokenizers")

from specport.errors import ModelError
from specport.text import gguf_tokenizer

PATH = Path("m.gguf")


def test_merges_stand_in_the_order_of_scores() -> None:
    tokens = {token: i for i, token in enumerate(("a", "b", "ab", "abb", "bb"))}
    found = gguf_tokenizer._merges_from_scores(tokens, [0.0, 0.0, -2.0, -3.0, -1.0], PATH)
    assert found == [("b", "b"), ("a", "b"), ("a", "bb"), ("ab", "b")]


@pytest.mark.parametrize(
    "tokens", [["a" * n for n in range(1, 1000)], ["x", "y" * 500_000]], ids=["many", "long"]
)
def test_vocabularies_that_no_model_has_are_refused_at_once(tokens: list[str]) -> None:
    began = time.process_time()
    with pytest.raises(ModelError, match=r"m\.gguf: its tokens are not those"):
        gguf_tokenizer._merges_from_scores({t: i for i, t in enumerate(tokens)}, [0.0] * len(tokens), PATH)
    assert time.process_time() - began < 2.0
