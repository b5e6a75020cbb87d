"""Dialogues as targets write them for their drafts; `specport.traffic.dialogues` has their files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from specport.traffic import dialogues as files
from specport.traffic.dialogues import Dialogue, TopTokens, read_shard, read_shards, save_shard

__all__ = [
    "TOP_K",
    "Dialogue",
    "TopTokens",
    "likeliest",
    "read_shard",
    "read_shards",
    "save_shard",
    "token_counts",
]

TOP_K = 32


def likeliest(logits: NDArray[np.float32]) -> TopTokens:
    """Return the TOP_K likeliest ids of [vocab] logits and their probabilities, likeliest first."""
    return files.likeliest(logits, TOP_K)


def token_counts(shards: Sequence[Path]) -> Counter[int]:
    """Return how often each token id occurs in these shards, prompts included. Raises ModelError."""
    return Counter(token for path in shards for d in read_shard(path) for token in d.tokens.tolist())
